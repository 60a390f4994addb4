"""The run folder: a run's measurements on disk, in files that contain data only.

Layout of a folder, schema version 1:

    run.json                                   schema and its version, creation time, library versions, `meta`
    measurements.jsonl                         one JSON object a line, appended and flushed to the disk
    measurements.torn                          an incomplete line left by a killed process (only then)
    measurements.csv                           the table for people, made by `export_csv`
    kernels/<folder of the probe>/<index, 6 digits>.safetensors
    measurements.rewound001.jsonl              records set aside by `rewind`; kernels `<index>.rewound001.safetensors`
    lock                                       the lock of the writer

The folder of a probe is `names.folder_of(name)`, which is the name itself for `Exp000` and the like. Kernels are found
by the path in their record, so older folders with plain names can still be read.

`meta` is the caller's description of the run. Its `seed`, if present, is an integer or null, and its `probes` a list of
objects with at least a `name` and a `hash`. A line is an object with a `kind`; one of the kind "measurement" has
`probe`, `index` (growing within a probe), `clock`, `segment`, `values`, `reasons`, `notes`, `trust`, `kernel` and
`failure`. Unknown keys are allowed everywhere. JSON is strict: non-finite floats are written as `{"nonfinite": "nan"}`,
`"inf"` or `"-inf"` and restored on reading.

Guarantees. A process killed at any point leaves a loadable folder that lacks at most the line being written: a kernel
is complete on disk before the line that names it, `run.json` is replaced atomically, and an incomplete last line is set
aside on resuming. Reading executes no code, checks sizes before it allocates, follows no symbolic link inside the
folder and opens no path outside it. Unusable content raises `RunFolderError`.
"""

from avalanche_ntk.recorder.runfolder.folder import RunFolder

__all__ = ["RunFolder"]
