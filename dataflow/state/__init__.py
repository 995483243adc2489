"""Profiles at scale: a keyed step's state in lanes, each a few tables, with a log and images of their own.

Read the files in this order:

- `table`: rows of a NumPy structured array, found by key; what changed since the last flush.
- `chunk`: what changed in a lane's tables, as bytes.
- `log`: append-only files of chunks; the token that Bytewax keeps in place of a lane's state.
- `image`: a lane's tables as of a token, in one file that a resumed lane maps.
- `compaction`: the helper process that makes a new image of an old one and the chunks since.
- `loading`: a lane read from its image and the chunks since.
- `store`: the directory: what it belongs to, who holds it, which files are needed.
- `lane`: one lane, as Bytewax sees it: when it is written, committed, and in an image.
- `mapped_tables`: its tables, as a step maps items over them; what is forgotten; what becomes of a fault.
- `batches`, `lanes`: `stateful_map`, the step itself.
- `committed`, `parquet`, `__main__`: reading a directory from outside: inspect, export, import.
"""
