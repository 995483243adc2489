"""A lane read from files: the newest image on the token's chain, and the chunks since."""

from pathlib import Path
from typing import NamedTuple

from dataflow.errors import UserError
from dataflow.state.chunk import apply_chunk
from dataflow.state.image import ImageHead, ImageId, image_id, map_image, read_head
from dataflow.state.log import BEGINNING, ChunkId, LogDamagedError, LogReader, log_name
from dataflow.tables.table import Layout, Tables, new_tables

_TRIES = 5
"""A helper may put a new image in the place of the one just found; so often in a row it does not."""


class Chain(NamedTuple):
    """What a token stands for: an image, if there is one, and chunks, oldest first."""

    image: ImageId | None
    head: ImageHead | None
    chunks: list[ChunkId]


class Loaded(NamedTuple):
    """A lane's tables, and what they were read from."""

    tables: Tables
    chain: Chain


def images_of(directory: Path, step: str, lane: int) -> list[ImageId]:
    """The images of a lane that are in the directory, the newest first."""
    found = [image_id(path) for path in directory.glob(f"{step}.{lane:04}.*.image")]
    return sorted([image for image in found if image is not None], reverse=True)


def chain_of(directory: Path, reader: LogReader, step: str, lane: int, last: ChunkId) -> Chain:
    """What a token stands for; reads no more than heads.

    Raises:
        UserError: something of it is missing or damaged.
    """
    for _ in range(_TRIES):
        try:
            heads = {image: read_head(directory / image.name) for image in images_of(directory, step, lane)}
            base, chunks = reader.chain(step, lane, last, [head.chunk for head in heads.values()])
        except FileNotFoundError:
            continue
        later = [image for image in heads if image.version > last.version]
        if last == BEGINNING and later:
            msg = (
                f"{directory / later[0].name} has no row in the recovery data that names its lane: they are not of one "
                "time. Restore the whole recovery directory from one backup, or use an empty one"
            )
            raise UserError(msg)
        for image, head in heads.items():
            if head.chunk == base:
                return Chain(image, head, chunks)
        return Chain(None, None, chunks)
    msg = f"the images of lane {lane} of {step} in {directory} come and go: see that only one flow runs on it"
    raise UserError(msg)


def load_lane(directory: Path, step: str, lane: int, last: ChunkId, layout: Layout) -> Loaded:
    """The tables of a lane as of a token.

    Raises:
        UserError: something of it is missing, damaged, or of another layout; the line says what and where.
    """
    for _ in range(_TRIES):
        with LogReader(directory) as reader:
            chain = chain_of(directory, reader, step, lane, last)
            if chain.image is None:
                tables = new_tables(layout)
            else:
                try:
                    _, tables = map_image(directory / chain.image.name, layout)
                except FileNotFoundError:
                    continue
            for chunk in chain.chunks:
                try:
                    apply_chunk(tables, reader.payload(step, lane, chunk))
                except ValueError as error:
                    path = directory / log_name(chunk.place.file)
                    msg = f"{path} is damaged at byte {chunk.place.offset}: {error}. Restore it from a backup"
                    raise LogDamagedError(msg) from error
        for table in tables.values():
            if chain.chunks:
                table.take_changes()  # what a new table begins with is in the first chunk
            table.loaded()
        return Loaded(tables, chain)
    msg = f"the images of lane {lane} of {step} in {directory} come and go: see that only one flow runs on it"
    raise UserError(msg)
