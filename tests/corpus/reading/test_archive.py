import os
import stat
import zipfile

import pytest

from sidrec.corpus.reading.archive import extract
from sidrec.errors import DataError

LIMITS = {"max_total_bytes": 10_000_000, "max_files": 20, "max_ratio": 100.0}


def _zip(path, content, compression=zipfile.ZIP_DEFLATED):
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, data in content.items():
            archive.writestr(name, data)
    return path


def test_files_arrive_with_their_bytes(tmp_path):
    archive = _zip(tmp_path / "a.zip", {"ml/movies.csv": "x,y\n", "ml/sub/r.csv": b"\x00\xff"})
    files = extract(archive, tmp_path / "out", **LIMITS)
    assert [file.relative_to(tmp_path / "out").as_posix() for file in files] == [
        "ml/movies.csv",
        "ml/sub/r.csv",
    ]
    assert files[0].read_text() == "x,y\n"
    assert files[1].read_bytes() == b"\x00\xff"


def test_only_the_named_members_are_unpacked(tmp_path):
    archive = _zip(tmp_path / "a.whl", {"a": "1", "b": "2", "../evil": "3"})
    extract(archive, tmp_path / "out", members=["b"], **LIMITS)
    assert [file.name for file in (tmp_path / "out").iterdir()] == ["b"]


def test_a_missing_member_is_named(tmp_path):
    archive = _zip(tmp_path / "a.zip", {"a": "1"})
    with pytest.raises(DataError, match=r"lacks ratings\.csv"):
        extract(archive, tmp_path / "out", members=["ratings.csv"], **LIMITS)


@pytest.mark.parametrize("name", ["../evil", "/etc/evil", "ml/../../evil", "..\\evil", "C:evil"])
def test_a_path_that_leads_outside_is_refused(tmp_path, name):
    archive = _zip(tmp_path / "a.zip", {"good": "1", name: "2"})
    with pytest.raises(DataError, match="outside its folder") as caught:
        extract(archive, tmp_path / "deep" / "out", **LIMITS)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.rglob("*evil*"))
    assert not (tmp_path / "deep").exists()


def test_a_link_is_refused(tmp_path):
    info = zipfile.ZipInfo("link")
    info.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr(info, "/etc/passwd")
    with pytest.raises(DataError, match="'link' is a link"):
        extract(tmp_path / "a.zip", tmp_path / "out", **LIMITS)


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_the_same_name_twice_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("a", "1")
        archive.writestr("a", "2")
    with pytest.raises(DataError, match="'a' occurs twice"):
        extract(tmp_path / "a.zip", tmp_path / "out", **LIMITS)


def test_a_bomb_is_refused(tmp_path):
    archive = _zip(tmp_path / "a.zip", {"zeros": bytes(5_000_000)})
    with pytest.raises(DataError, match="zip bomb"):
        extract(archive, tmp_path / "out", **LIMITS)
    with pytest.raises(DataError, match="unpacks to 5,000,000 bytes, at most 4,000,000"):
        extract(archive, tmp_path / "out", **(LIMITS | {"max_total_bytes": 4_000_000}))
    assert not (tmp_path / "out").exists()


def test_too_many_files_are_refused(tmp_path):
    archive = _zip(tmp_path / "a.zip", {str(i): "" for i in range(21)})
    with pytest.raises(DataError, match="holds 21 files, at most 20"):
        extract(archive, tmp_path / "out", **LIMITS)


def test_a_header_that_understates_the_size_does_not_help(tmp_path):
    archive = _zip(tmp_path / "a.zip", {"zeros": bytes(3_000_000)})
    true_size, claimed = (3_000_000).to_bytes(4, "little"), (10).to_bytes(4, "little")
    archive.write_bytes(archive.read_bytes().replace(true_size, claimed))
    with pytest.raises(DataError, match="cannot be unpacked"):
        extract(archive, tmp_path / "out", **LIMITS)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("keep", [0, 10, 500, 99_900])
def test_a_truncated_archive_is_refused_and_leaves_nothing(tmp_path, keep):
    archive = _zip(tmp_path / "a.zip", {"noise": os.urandom(100_000)}, zipfile.ZIP_STORED)
    archive.write_bytes(archive.read_bytes()[:keep])
    with pytest.raises(DataError, match="download it again"):
        extract(archive, tmp_path / "out", **LIMITS)
    assert [file.name for file in tmp_path.iterdir()] == ["a.zip"]


def test_a_flipped_byte_is_refused_and_the_old_folder_stays(tmp_path):
    archive = _zip(tmp_path / "a.zip", {"noise": b"a" * 1000}, zipfile.ZIP_STORED)
    extract(archive, tmp_path / "out", **LIMITS)
    archive.write_bytes(archive.read_bytes().replace(b"aaaa", b"abaa", 1))
    with pytest.raises(DataError, match="Bad CRC"):
        extract(archive, tmp_path / "out", **LIMITS)
    assert (tmp_path / "out" / "noise").read_bytes() == b"a" * 1000


def test_a_missing_archive_is_named(tmp_path):
    with pytest.raises(DataError, match=r"nowhere\.zip does not exist"):
        extract(tmp_path / "nowhere.zip", tmp_path / "out", **LIMITS)


def test_a_name_that_is_file_and_folder_at_once_is_refused(tmp_path):
    archive = _zip(tmp_path / "a.zip", {"a": "1", "a/b": "2"})
    with pytest.raises(DataError, match="check the disk and the archive"):
        extract(archive, tmp_path / "out", **LIMITS)
    assert not (tmp_path / "out").exists()
