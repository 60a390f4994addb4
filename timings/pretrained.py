"""Small randomly initialised transformers: the cost of a measurement, and how many use the graph engine.

    python timings/pretrained.py seconds [--tokens 3,6,10,11,12,16,24,32]
    python timings/pretrained.py zoo [--only bert,gpt2] [--task causal|classes]

`seconds`: a later measurement of a tiny BERT, GPT-2 and LLaMA with classes, as a multiple of that of a ViT of the same
size with as many tokens (patches and class token); processor time on one thread, to reduce the effect of other load,
all in one process. `zoo`: every language model of transformers with a causal or a classification head that can be made
small by its configuration: the method of its kernel, and its error against the reference in float64.
"""

import argparse
import dataclasses
import inspect
import signal
import time
import warnings
from collections import Counter

import torch
import transformers

from avalanche_ntk.errors import ModelError
from avalanche_ntk.kernels import empirical_ntk, reference_ntk

SIZE = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64, "num_labels": 3}
WORDS = {"vocab_size": 50, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
GPT2 = {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_inner": 64, "num_labels": 3}


def logits(out):
    return out.logits


def last_logits(out):
    return out.logits[:, -1, :2]


# ------------------------------------------------------------------ seconds


def seconds(call, repeats=8):
    """Return the minimum processor time of several calls after one that plans."""
    call()
    found = []
    for _ in range(repeats):
        begin = time.process_time()
        call()
        found.append(time.process_time() - begin)
    return min(found)


def vit(tokens):
    """Return a ViT with this number of tokens (a row of patches and the class token), and 12 images."""
    shape = (4, 4 * (tokens - 1))
    config = transformers.ViTConfig(**SIZE, image_size=shape, patch_size=4)
    return transformers.ViTForImageClassification(config).eval(), {"pixel_values": torch.randn(12, 3, *shape)}


def compare(tokens):
    """Print one line per model and number of tokens."""
    t = transformers
    models = {
        "BERT": t.BertForSequenceClassification(t.BertConfig(**SIZE, **WORDS)),
        "GPT-2": t.GPT2ForSequenceClassification(t.GPT2Config(**GPT2, **WORDS, use_cache=False)),
        "LLaMA": t.LlamaForSequenceClassification(t.LlamaConfig(**SIZE, **WORDS, use_cache=False)),
    }
    for n in tokens:
        model, x = vit(n)
        base = seconds(lambda m=model, x=x: empirical_ntk(m, x, output_selector=logits))
        print(f"ViT    {n:3} tokens {1e3 * base:7.1f} ms", flush=True)
        for name, model in models.items():
            model.eval()
            x = {"input_ids": torch.randint(3, 50, (12, n))}
            found = seconds(lambda m=model, x=x: empirical_ntk(m, x, output_selector=logits))
            _, info = empirical_ntk(model, x, output_selector=logits, return_info=True)
            ways = " ".join(sorted(set(info.methods.values())))
            print(f"{name:6} {n:3} tokens {1e3 * found:7.1f} ms  {found / base:5.2f} times a ViT  {ways}", flush=True)


# ------------------------------------------------------------------ zoo

# Fields of configurations, by parts of their names, and small values; the first match counts
SMALL = (
    (("vocab_size", "vocab_size_per_layer_input"), 50),
    (("max_position", "n_positions", "n_ctx", "max_seq", "context_length", "max_target", "max_source"), 64),
    (("num_experts_per_tok", "num_selected_experts", "moe_topk", "moe_k", "topk_group", "n_group"), 1),
    (("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts"), 4),
    (("num_key_value_heads", "num_kv_heads", "n_head_kv"), 2),
    (("attention_heads", "n_head", "num_heads", "heads"), 4),
    (("head_dim", "head_size", "qk_nope", "v_head"), 8),
    (("qk_rope",), 4),
    (("lora_rank",), 8),
    (("num_hidden_layers", "n_layer", "num_layers", "n_layers", "encoder_layers", "decoder_layers"), 2),
    (("moe_intermediate", "shared_expert"), 16),
    (("intermediate_size", "ffn_dim", "d_ff", "n_inner", "ffn_hidden", "dim_feedforward", "hidden_dim"), 64),
    (("hidden_size", "d_model", "n_embd", "embedding_size", "word_embed_proj_dim", "emb_dim", "dim"), 32),
    (("sliding_window", "attention_window", "window_size"), 8),
    (("num_buckets", "state_size"), 8),
)


def small_sizes(config_class):
    """Return small sizes for a configuration, by field name."""
    names = set(inspect.signature(config_class.__init__).parameters)
    if dataclasses.is_dataclass(config_class):
        names |= {f.name for f in dataclasses.fields(config_class)}
    found = {}
    for name in names:
        value = next((v for parts, v in SMALL if any(p in name for p in parts)), None)
        default = getattr(config_class, name, value)
        if value is not None and (default is None or (isinstance(default, int) and not isinstance(default, bool))):
            found[name] = value
    return found | {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "use_cache": False, "num_labels": 3}


class TooLongError(Exception):
    """A model takes too long."""


def give_up(*_):
    raise TooLongError("takes too long")


def look(kind, config_class):
    """Return the method for one model, and its error against the reference in float64."""
    torch.manual_seed(0)
    config = config_class(**small_sizes(config_class))
    with torch.device("meta"):
        numbers = sum(p.numel() for p in getattr(transformers, kind)(config).parameters())
    if numbers > 3e6:
        return f"not small ({numbers / 1e6:.0f} million numbers)", None
    model = getattr(transformers, kind)(config).eval()
    for p in model.parameters():
        p.data += 0.02 * torch.randn_like(p)
    ids = torch.randint(3, 50, (4, 6))
    ids[:, -1] = 2  # for classifiers that read the end of the sentence
    x = {"input_ids": ids, "attention_mask": torch.ones(4, 6, dtype=torch.long)}
    arguments = {"output_selector": logits if kind.endswith("SequenceClassification") else last_logits}
    try:
        got, info = empirical_ntk(model.double(), x, return_info=True, **arguments)
    except ModelError:  # grouped matrix products do not support float64
        arguments["dtype"] = torch.float32
        got, info = empirical_ntk(model.float(), x, return_info=True, **arguments)
    want = reference_ntk(model, x, **arguments)
    others = {n: way for n, way in info.methods.items() if way in ("loop", "jacobian")}
    told = "graph"
    if others:
        share = sum(p.numel() for n, p in model.named_parameters() if n in others) / numbers
        told = f"{'loop' if share == 1 else 'in part'}: {share:.0%} otherwise, {next(iter(info.reasons.values()))}"
    return told, float((got - want).norm() / want.norm())


def zoo(only, task):
    """Print one line per model, and the counts."""
    tables = {
        "causal": transformers.models.auto.modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
        "classes": transformers.models.auto.modeling_auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
    }
    counts = Counter()
    signal.signal(signal.SIGPROF, give_up)
    for kind, (config_name, name) in sorted(
        (kind, row) for t, table in tables.items() if task in (None, t) for row in table.items() for kind in [t]
    ):
        if only and config_name not in only:
            continue
        signal.setitimer(signal.ITIMER_PROF, 40)
        try:
            config_class = transformers.models.auto.configuration_auto.CONFIG_MAPPING[config_name]
            told, error = look(name, config_class)
            wrong = error is not None and not error < 1e-3  # some always compute in float32
        except Exception as exc:  # noqa: BLE001 - a line of the table
            told, error, wrong = (
                f"not tried: {type(exc).__name__}: {str(exc).splitlines()[0][:110] if str(exc) else ''}",
                None,
                False,
            )
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)
        counts["wrong" if wrong else told.split(":")[0].split(" (")[0]] += 1
        print(f"{kind:8} {name:44} {'' if error is None else f'{error:.0e}':6} {told}", flush=True)
    print(dict(counts))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("seconds", "zoo"))
    parser.add_argument("--tokens", default="3,6,10,11,12,16,24,32")
    parser.add_argument("--only", help="names of configurations, such as bert,gpt2")
    parser.add_argument("--task", choices=("causal", "classes"))
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity_error()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    if arguments.what == "seconds":
        compare([int(n) for n in arguments.tokens.split(",")])
    else:
        zoo(arguments.only and arguments.only.split(","), arguments.task)


if __name__ == "__main__":
    main()
