"""A small correct format, and formats with one mistake each."""

from __future__ import annotations

import os
import pickle
import uuid

from mlp_hookspecs import Backend, hookimpl


class ToyFormat:
    """Lists of numbers and texts, by pickle, in two parts."""

    types: tuple[str, ...] = ("builtins.list",)

    @hookimpl
    def mlp_backends(self):
        """Declare it."""
        return [Backend("format", "toy", "A toy.", types=self.types)]

    @hookimpl
    def mlp_persist_artifact(self, value, target):
        """Write the value; its length is a part of its own and in the metadata."""
        if type(value) is not list:
            return None
        target.write([self.encode(value)])
        target.part("length").write([str(len(value)).encode()])
        target.describe("length", str(len(value)))
        return True

    @hookimpl
    def mlp_load_artifact(self, ref, source):
        """Read the value."""
        value = self.decode(bytes(source.buffer()))
        assert int(ref.metadata["length"]) == int(bytes(source.part("length").buffer())) == len(value)
        return value

    def encode(self, value):
        """Return the bytes of a value."""
        return pickle.dumps(value)

    def decode(self, data):
        """Return the value of bytes."""
        return pickle.loads(data)


class Lossy(ToyFormat):
    """Makes texts of numbers."""

    def encode(self, value):
        return super().encode([str(item) for item in value])


class Random(ToyFormat):
    """Writes something else each time."""

    def encode(self, value):
        return super().encode(value) + uuid.uuid4().bytes


class Homely(ToyFormat):
    """Writes what holds in one process only."""

    def encode(self, value):
        return super().encode(value) + str(os.getpid()).encode()


class Remembering(ToyFormat):
    """Keeps the value in its own memory."""

    def __init__(self):
        self.kept = {}

    def encode(self, value):
        key = super().encode(value)
        self.kept[key] = value
        return key

    def decode(self, data):
        return list(self.kept[data])


class Greedy(ToyFormat):
    """Takes what it cannot hold."""

    @hookimpl
    def mlp_persist_artifact(self, value, target):
        target.write([b"?"])
        return super().mlp_persist_artifact(value, target) or True


class Raising(ToyFormat):
    """Raises where it should leave a value to another format."""

    @hookimpl
    def mlp_persist_artifact(self, value, target):
        if type(value) is not list:
            raise TypeError(type(value))
        return super().mlp_persist_artifact(value, target)


class Silent(ToyFormat):
    """Does not say that it has written."""

    @hookimpl
    def mlp_persist_artifact(self, value, target):
        super().mlp_persist_artifact(value, target)


class Consuming(ToyFormat):
    """Empties what it reads."""

    @hookimpl
    def mlp_load_artifact(self, ref, source):
        value = super().mlp_load_artifact(ref, source)
        source.local_path().write_bytes(source.local_path().read_bytes() + b"read")
        return value


class Changing(ToyFormat):
    """Changes the value that it writes."""

    def encode(self, value):
        data = super().encode(value)
        value.append(len(value))
        return data


class Untyped(ToyFormat):
    """Names types in a way that no value's type is named."""

    types = ("list",)


class Undeclared(ToyFormat):
    """Declares nothing."""

    @hookimpl
    def mlp_backends(self):
        return []


class Mute(ToyFormat):
    """Says nothing about itself."""

    @hookimpl
    def mlp_backends(self):
        return [Backend("format", "toy", " ", types=self.types)]


class WriteOnly:
    """Cannot read."""

    mlp_backends = ToyFormat.mlp_backends
    mlp_persist_artifact = ToyFormat.mlp_persist_artifact
    encode = ToyFormat.encode
    types = ToyFormat.types


good = ToyFormat()
BROKEN = {
    Lossy: "test_values_come_back",
    Random: "test_values_are_written_alike",
    Homely: "test_values_are_read_and_written_in_another_process",
    Remembering: "test_values_are_read_and_written_in_another_process",
    Greedy: "test_other_values_are_left_to_other_formats",
    Raising: "test_other_values_are_left_to_other_formats",
    Silent: "test_values_come_back",
    Consuming: "test_loaded_values_are_apart",
    Changing: "test_values_come_back",
    Untyped: "test_types_are_named",
    Undeclared: "test_is_declared",
    Mute: "test_is_declared",
    WriteOnly: "test_every_hook_of_the_kind_is_implemented",
}
globals().update({kind.__name__: kind() for kind in BROKEN})
