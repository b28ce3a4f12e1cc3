"""Reader of the file that an offline run of Weights & Biases writes (LevelDB's log format)."""

import importlib
import json
import struct

_BLOCK = 32_768


def _records(content):
    """Yield whole records; a record may be cut into pieces at the ends of blocks."""
    place, parts = 7, []  # behind the file's own header
    while place + 7 <= len(content):
        left = _BLOCK - place % _BLOCK
        if left < 7:
            place += left
            continue
        length, kind = struct.unpack_from("<HB", content, place + 4)
        parts.append(content[place + 7 : place + 7 + length])
        place += 7 + length
        if kind in (1, 4):  # whole, or the last piece
            yield b"".join(parts)
            parts = []


def read_offline_run(folder):
    """Return what an offline run holds: config, history, summaries of metrics, artifacts."""
    messages = importlib.import_module("wandb.proto.wandb_internal_pb2")
    (file,) = folder.glob("*.wandb")
    found = {"config": {}, "history": [], "summaries": {}, "artifacts": []}
    for data in _records(file.read_bytes()):
        record = messages.Record()
        record.ParseFromString(data)
        found["config"] |= _values(record.config.update) | _values(record.run.config.update)
        if record.HasField("history"):
            found["history"].append(_values(record.history.item))
        if record.HasField("metric"):
            name = record.metric.name or record.metric.glob_name
            chosen = [field.name for field, value in record.metric.summary.ListFields() if value]
            found["summaries"][name] = chosen
        if record.HasField("artifact"):
            found["artifacts"].append((record.artifact.type, record.artifact.manifest))
    return found


def _values(items):
    return {one.key or "/".join(one.nested_key): json.loads(one.value_json) for one in items}
