"""Backbones as people load them (transformers, timm, LoRA by peft), small and made on the spot, against the oracle."""

import pytest
import torch

from avalanche_ntk.kernels import empirical_ntk, reference_ntk, spot_check

WHY = "needs the extra `zoo` (pip install 'avalanche-ntk[zoo]')"
# peft asks transformers for a property under its old name
pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")

WORDS = 30
LENGTHS = (7, 5, 3, 6)
GPT2 = {"vocab_size": WORDS, "n_positions": 16, "n_embd": 8, "n_layer": 2, "n_head": 2, "use_cache": False}
GPT2 |= {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0, "num_labels": 3}
SIZES = {"hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 12, "num_labels": 3}
TEXT = SIZES | {"vocab_size": WORDS, "max_position_embeddings": 16, "pad_token_id": 0}
LLAMA = TEXT | {"num_key_value_heads": 1, "use_cache": False, "bos_token_id": 1, "eos_token_id": 2}
IMAGES = SIZES | {"image_size": 16, "patch_size": 8}


def of_transformers(kind, config, **sizes):
    """A model with random weights, of which none is 0 or 1."""
    library = pytest.importorskip("transformers", reason=WHY)
    model = getattr(library, kind)(getattr(library, config)(**sizes))
    for p in model.parameters():
        p.data += 0.1 * torch.randn_like(p)
    return model.double()


def texts(side="right"):
    """Sentences of several lengths, padded; positions count from the first word."""
    ids, mask = torch.randint(3, WORDS, (len(LENGTHS), max(LENGTHS))), torch.zeros(len(LENGTHS), max(LENGTHS))
    for row, n in zip(mask, LENGTHS, strict=True):
        row[slice(n) if side == "right" else slice(-n, None)] = 1
    mask = mask.long()
    return {"input_ids": ids * mask, "attention_mask": mask, "position_ids": (mask.cumsum(1) - 1).clamp(min=0)}


def images():
    return torch.randn(4, 3, 16, 16, dtype=torch.float64)


def logits(out):
    return out.logits


def last_token(out):
    return out.logits[:, -1, :5]


def answers(out):
    """Logits of the words that stand for the answers to choose from."""
    return out.logits[:, -1, [7, 11]]


def without_positions(batch):
    return {k: v for k, v in batch.items() if k != "position_ids"}


CASES = {
    "GPT-2, classes": lambda: (of_transformers("GPT2ForSequenceClassification", "GPT2Config", **GPT2), texts(), logits),
    # its output layer is the table of its input tokens
    "GPT-2, last token": lambda: (
        of_transformers("GPT2LMHeadModel", "GPT2Config", **GPT2),
        texts("left"),
        last_token,
    ),
    "BERT, classes": lambda: (
        of_transformers("BertForSequenceClassification", "BertConfig", **TEXT),
        without_positions(texts()),
        logits,
    ),
    "LLaMA, answers": lambda: (of_transformers("LlamaForCausalLM", "LlamaConfig", **LLAMA), texts("left"), answers),
    "LLaMA, tied, last token": lambda: (
        of_transformers("LlamaForCausalLM", "LlamaConfig", **LLAMA, tie_word_embeddings=True),
        texts("left"),
        last_token,
    ),
    "LLaMA, eager attention, classes": lambda: (
        of_transformers("LlamaForSequenceClassification", "LlamaConfig", **LLAMA, attn_implementation="eager"),
        without_positions(texts()),
        logits,
    ),
    "ViT of transformers": lambda: (
        of_transformers("ViTForImageClassification", "ViTConfig", **IMAGES),
        {"pixel_values": images()},
        logits,
    ),
    "ViT of timm": lambda: (vit_of_timm(), images(), None),
}


def vit_of_timm():
    timm = pytest.importorskip("timm", reason=WHY)
    sizes = {"img_size": 16, "patch_size": 8, "embed_dim": 8, "depth": 2, "num_heads": 2, "num_classes": 3}
    return timm.create_model("vit_tiny_patch16_224", **sizes).double()


def with_lora(model, targets, **options):
    """A frozen model with low-rank updates, as peft makes them: B starts at zero."""
    peft = pytest.importorskip("peft", reason=WHY)
    return peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules=targets, **options)).double()


def check(model, x, selector, **options):
    """Exact in float64 by the graph alone, whole and as a trace, in float32 too, and by a plan that is kept."""
    full = reference_ntk(model, x, output_selector=selector, reduction="full", **options)
    arguments = {"output_selector": selector, "return_info": True, **options}
    got, info = empirical_ntk(model, x, reduction="full", **arguments)
    assert float((got - full).norm() / full.norm()) <= 1e-12
    assert info.reasons == {} and info.plan_not_kept == "" and not set(info.methods.values()) & {"jacobian", "loop"}
    trace, again = empirical_ntk(model, x, **arguments)
    want = full.diagonal(dim1=2, dim2=3).sum(-1)
    assert float((trace - want).norm() / want.norm()) <= 1e-12
    assert again.checks == "trusted"  # nothing is read or proved a second time
    return info


@pytest.mark.parametrize("name", CASES)
def test_exact_and_by_the_graph(name):
    model, x, selector = CASES[name]()
    info = check(model, x, selector)
    assert set(info.methods) == {n for n, _ in model.named_parameters()}  # tied ones under one name


@pytest.mark.parametrize("name", ["GPT-2, classes", "BERT, classes", "LLaMA, eager attention, classes"])
def test_padding_changes_nothing(name):
    """With its mask, a padded sentence has the kernel that it has alone and without padding."""
    model, x, selector = CASES[name]()
    got = empirical_ntk(model, x, output_selector=selector)
    alone = [{k: v[i : i + 1, :n] for k, v in x.items()} for i, n in enumerate(LENGTHS)]
    for i, a in enumerate(alone):
        for k, b in enumerate(alone[: i + 1]):
            want = reference_ntk(model, a, b, output_selector=selector)
            assert float((got[i, k] - want).abs()) <= 1e-12 * float(got[i, k].abs().clamp(min=1))


def test_the_mask_is_looked_at():
    model, x, selector = CASES["BERT, classes"]()
    got = empirical_ntk(model, x, output_selector=selector)
    unmasked = empirical_ntk(
        model, x | {"attention_mask": torch.ones_like(x["attention_mask"])}, output_selector=selector
    )
    assert float((got - unmasked).norm() / got.norm()) > 1e-3


def test_a_frozen_backbone_costs_its_head_alone():
    model, x, selector = CASES["BERT, classes"]()
    model.base_model.requires_grad_(False)
    info = check(model, x, selector)
    assert info.methods == {"classifier.weight": "gram", "classifier.bias": "gram"}  # one position: nothing is formed


LORA = {
    "GPT-2": ("GPT-2, classes", ["c_attn"], {"task_type": "SEQ_CLS", "fan_in_fan_out": True}),
    "BERT": ("BERT, classes", ["query", "value"], {"task_type": "SEQ_CLS"}),
    "LLaMA": ("LLaMA, answers", ["q_proj", "v_proj"], {"task_type": "CAUSAL_LM"}),
    "ViT of transformers": ("ViT of transformers", "all-linear", {"modules_to_save": ["classifier"]}),
    "ViT of timm": ("ViT of timm", ["qkv"], {"modules_to_save": ["head"]}),
}


@pytest.mark.parametrize("name", LORA)
def test_lora(name):
    """At its start, where half of all gradients are zero, and on the way; the plan of the start holds later."""
    case, targets, options = LORA[name]
    model, x, selector = CASES[case]()
    model = with_lora(model, targets, **options)
    info = check(model, x, selector)
    trained = {n for n, p in model.named_parameters() if p.requires_grad}
    assert set(info.methods) == trained and any("lora_A" in n for n in trained)
    for n, p in model.named_parameters():
        if n in trained:
            p.data += 0.1 * torch.randn_like(p)
    want = reference_ntk(model, x, output_selector=selector)
    got, later = empirical_ntk(model, x, output_selector=selector, return_info=True)
    assert float((got - want).norm() / want.norm()) <= 1e-12
    assert later.checks == "trusted" and later.reasons == {}


def test_in_float32():
    model, x, selector = CASES["GPT-2, classes"]()
    kernel = empirical_ntk(model.float(), x, output_selector=selector)
    assert spot_check(model, x, kernel, 3, output_selector=selector) <= 2e-6
