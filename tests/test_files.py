import hashlib
import os
import stat

import pytest

from sidrec.errors import DataError
from sidrec.files import (
    atomic_file,
    atomic_folder,
    read_json,
    sha256_of_file,
    write_json,
)


def test_a_file_appears_whole(tmp_path):
    target = tmp_path / "new" / "file.txt"
    with atomic_file(target) as temporary:
        temporary.write_text("half")
        assert not target.exists()
        temporary.write_text("whole")
    assert target.read_text() == "whole"
    assert os.listdir(target.parent) == ["file.txt"]  # noqa: PTH208


def test_a_file_keeps_its_content_when_writing_fails(tmp_path):
    target = tmp_path / "file.txt"
    target.write_text("old")

    def write():
        with atomic_file(target) as temporary:
            temporary.write_text("half")
            raise OSError("disk full")

    with pytest.raises(OSError, match="full"):
        write()
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_files_get_the_rights_that_the_umask_gives(tmp_path):
    before = os.umask(0o027)
    try:
        write_json(tmp_path / "file.json", {})
        with atomic_folder(tmp_path / "folder"):
            pass
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "file.json").stat().st_mode) == 0o640
    assert stat.S_IMODE((tmp_path / "folder").stat().st_mode) == 0o750


def test_a_folder_is_replaced_as_a_whole(tmp_path):
    target = tmp_path / "folder"
    for name in ("first", "second"):
        with atomic_folder(target) as temporary:
            (temporary / name).write_text(name)
    assert [file.name for file in target.iterdir()] == ["second"]
    assert list(tmp_path.iterdir()) == [target]


def test_the_first_of_two_writers_wins(tmp_path):
    target = tmp_path / "folder"
    with atomic_folder(target, first_wins=True) as second:
        (second / "second").touch()
        with atomic_folder(target, first_wins=True) as first:
            (first / "first").touch()
        opened = (target / "first").stat().st_ino
    assert [file.name for file in target.iterdir()] == ["first"]
    assert (target / "first").stat().st_ino == opened
    assert list(tmp_path.iterdir()) == [target]


def test_first_wins_hides_no_error(tmp_path):
    with (
        pytest.raises(OSError, match="Not a directory"),
        atomic_folder(tmp_path / "file", first_wins=True),
    ):
        (tmp_path / "file").touch()


def test_a_folder_keeps_its_content_when_writing_fails(tmp_path):
    target = tmp_path / "folder"
    target.mkdir()
    (target / "old").touch()

    def write():
        with atomic_folder(target) as temporary:
            (temporary / "half").touch()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write()
    assert [file.name for file in target.iterdir()] == ["old"]
    assert list(tmp_path.iterdir()) == [target]


def test_json_comes_back_in_order(tmp_path):
    content = {"b": [1, None, "ü"], "a": {"x": 0.1}}
    write_json(tmp_path / "f.json", content)
    assert list(read_json(tmp_path / "f.json").items()) == list(content.items())
    assert "ü" in (tmp_path / "f.json").read_text()


@pytest.mark.parametrize("content", [b'{"a": 1,\n}', b"\xff\xfe", b""])
def test_broken_json_names_the_file(tmp_path, content):
    (tmp_path / "f.json").write_bytes(content)
    with pytest.raises(DataError, match=r"f\.json is not valid JSON"):
        read_json(tmp_path / "f.json")
    with pytest.raises(DataError, match="does not exist"):
        read_json(tmp_path / "gone.json")


def test_sha256_of_more_than_one_chunk(tmp_path):
    content = os.urandom((1 << 20) + 3)
    (tmp_path / "f").write_bytes(content)
    assert sha256_of_file(tmp_path / "f") == hashlib.sha256(content).hexdigest()
