"""The run folder: what a run has measured, on disk, in files that are data and nothing else.

Layout of a folder, schema version 1:

    run.json                                   schema and its version, creation time, library versions, `meta`
    measurements.jsonl                         one JSON object a line, appended and flushed to the disk
    measurements.torn                          what a killed process left of a line (only if that happened)
    measurements.csv                           the table for people, made by `export_csv`
    kernels/<folder of the probe>/<index, 6 digits>.safetensors
    measurements.rewound001.jsonl              what `rewind` set aside, with kernels `<index>.rewound001.safetensors`
    lock                                       who writes

The folder of a probe is `names.folder_of` its name, which is the name itself for `Exp000` and the like. A record names
its kernel's file, and that is what is read: folders whose kernels lie under the plain names are read as ever.

`meta` is what the caller stores about the run; where it has `seed` and `probes`, these are an integer (or null) and a
list of objects with at least a `name` and a `hash`. A line is an object with a `kind`; one of the kind "measurement"
has `probe`, `index` (growing within a probe), `clock`, `segment`, `values`, `reasons`, `notes`, `trust`, `kernel` and
`failure`. Unknown keys are allowed everywhere. JSON is strict: a float that is not finite is written as
`{"nonfinite": "nan"}`, `"inf"` or `"-inf"` and read back as that float.

Promises. A process killed at any point leaves a folder that loads and lacks at most the line being written: a kernel is
complete on disk before the line that names it, `run.json` is replaced as a whole, and a torn last line is set aside on
resuming. Reading executes nothing, checks sizes before it allocates, follows no symbolic link inside the folder and
leaves the folder for no path. What it cannot use, it refuses with `RunFolderError`.
"""

from avalanche_ntk.recorder.runfolder.folder import RunFolder

__all__ = ["RunFolder"]
