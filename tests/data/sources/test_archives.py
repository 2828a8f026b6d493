"""Archives are read as streams, and no header makes that long or large."""

import gzip
import io
import os
import stat
import tarfile
import zipfile

import pytest

from densenet_flax.common.errors import InputError
from densenet_flax.data.sources import archives
from densenet_flax.data.sources.archives import is_archive, read_archive

CONTENT = {"root/a.png": b"x" * 1000, "root/b/c.png": os.urandom(3000), "root/empty.txt": b""}
MEMBERS = tuple(CONTENT.items())


def info(name, size=0, kind=tarfile.REGTYPE, link=""):
    member = tarfile.TarInfo(name)
    member.size, member.type, member.linkname = size, kind, link
    return member


def make_tar(members=MEMBERS, form=tarfile.PAX_FORMAT):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=form) as archive:
        for name, content in members:
            if isinstance(content, bytes):
                archive.addfile(info(name, len(content)), io.BytesIO(content))
            else:
                archive.addfile(content)
    return buffer.getvalue()


def make_zip(members=MEMBERS, kind=zipfile.ZIP_DEFLATED):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", kind) as archive:
        for name, content in members:
            archive.writestr(name, content)
    return buffer.getvalue()


def read_all(tmp_path, data, name="archive.dat"):
    path = tmp_path / name
    path.write_bytes(data)
    assert is_archive(path)
    return {name: read() for name, read in read_archive(path)}


@pytest.mark.parametrize("name", ["a.zip", "a.tar", "a.tar.gz", "a.tgz", "download"])
def test_the_content_says_what_an_archive_is(tmp_path, name):
    for data in (
        make_zip(),
        make_tar(),
        gzip.compress(make_tar()),
        make_tar(form=tarfile.GNU_FORMAT),
    ):
        assert read_all(tmp_path, data, name) == CONTENT


def test_what_is_no_archive(tmp_path):
    for data in (b"", b"<html>", b"\x89PNG\r\n\x1a\n" + bytes(600), bytes(2000)):
        (tmp_path / "a.zip").write_bytes(data)
        assert not is_archive(tmp_path / "a.zip")


def test_members_that_are_not_read_are_passed_over(tmp_path):
    path = tmp_path / "a"
    path.write_bytes(gzip.compress(make_tar()))
    assert [name for name, _ in read_archive(path)] == list(CONTENT)


def test_links_folders_and_devices_are_no_files(tmp_path):
    kinds = (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE, tarfile.DIRTYPE)
    members = [("", info("a.png", kind=kind, link="/etc/passwd")) for kind in kinds]
    members.append(("b.png", b"x"))
    assert read_all(tmp_path, make_tar(members)) == {"b.png": b"x"}
    link = zipfile.ZipInfo("a.png")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    assert read_all(tmp_path, make_zip([(link, b"/etc/passwd"), ("d/", b"")])) == {}


@pytest.mark.parametrize("name", ["../a.png", "/a.png", "b/../../a.png"])
@pytest.mark.parametrize("make", [make_tar, make_zip])
def test_names_that_lead_out_are_an_error(tmp_path, make, name):
    with pytest.raises(InputError, match="climbs out"):
        read_all(tmp_path, make([(name, b"x")]))


@pytest.mark.parametrize("compress", [bytes, gzip.compress])
@pytest.mark.parametrize("lost", [0.02, 0.3, 0.7])
def test_a_truncated_archive(tmp_path, compress, lost):
    data = compress(make_tar([*MEMBERS, ("z.png", os.urandom(80_000))]))
    with pytest.raises(InputError, match="damaged or cut short"):
        read_all(tmp_path, data[: -int(lost * len(data)) - 10_000 * (compress is bytes)])
    data = make_zip()
    with pytest.raises(InputError, match="damaged or cut short"):
        read_all(tmp_path, data[: -int(lost * len(data))])


def test_a_damaged_header_in_the_middle_is_no_end(tmp_path):
    data = bytearray(make_tar(form=tarfile.GNU_FORMAT))
    data[data.index(b"root/b/c.png") + 150] ^= 1  # its checksum
    with pytest.raises(InputError, match="damaged or cut short"):
        read_all(tmp_path, bytes(data))


def test_a_damaged_member_of_a_zip_is_named(tmp_path):
    data = bytearray(make_zip(kind=zipfile.ZIP_STORED))
    data[data.index(b"x" * 1000) + 500] ^= 1
    with pytest.raises(InputError, match=r"root/a\.png: the archive is damaged or cut short"):
        read_all(tmp_path, bytes(data))


def header(kind, size, name="root/a.png"):
    return info(name, size, kind).tobuf(tarfile.GNU_FORMAT)


def sparse(size):
    """A GNU sparse member that says it is `size` bytes long and has none."""
    block = bytearray(header(tarfile.GNUTYPE_SPARSE, 512))
    block[483:495] = tarfile.itn(size, 12, tarfile.GNU_FORMAT)
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block) + bytes(512)


@pytest.mark.parametrize(
    "content",
    {
        "sparse": sparse(1 << 40),
        "beyond": header(tarfile.REGTYPE, 2**63 - 1),
        "2^64-1": header(tarfile.REGTYPE, 2**64 - 1),
        "tile": header(tarfile.REGTYPE, 2**31),
        "pax": header(tarfile.XHDTYPE, 6 << 30),
        "pax of 100 MB": header(tarfile.XHDTYPE, 100 << 20) + bytes(2000),
        "long name": header(tarfile.GNUTYPE_LONGNAME, 1 << 40),
        "nested": (header(tarfile.GNUTYPE_LONGNAME, 10) + b"abc".ljust(512, b"\0")) * 3000,
        "pax size": header(tarfile.XHDTYPE, 512) + b"27 size=99999999999999999\n".ljust(512, b"\0"),
        "backwards": header(tarfile.XHDTYPE, 512)
        + b"17 size=-99999\n\n".ljust(512, b"\0")
        + header(tarfile.REGTYPE, 10),
    }.items(),
    ids=lambda item: item[0],
)
def test_sizes_in_headers_are_not_believed(tmp_path, content):
    with pytest.raises(InputError) as caught:
        read_all(tmp_path, gzip.compress(content[1] + bytes(10240)))
    assert "\n" not in str(caught.value)


def test_what_inflates_to_much_more_is_no_archive_of_images(tmp_path, monkeypatch):
    monkeypatch.setattr(archives, "_MAX_INFLATED", 10_000_000)
    data = gzip.compress(make_tar([("a.png", b"x"), ("zeros", bytes(50_000_000))]), 1)
    with pytest.raises(InputError, match="inflates to more than 10 MB"):
        read_all(tmp_path, data)
    bomb = make_zip([("a.png", bytes(2_000_000))])
    monkeypatch.setattr(archives, "MAX_BYTES", 1_000_000)
    with pytest.raises(InputError, match=r"a\.png: has 2 MB: a slide"):
        read_all(tmp_path, bomb)
    # A member that inflates to more than its header says is cut there, and has another checksum.
    start = bomb.index(b"PK\x01\x02")
    lying = bytearray(bomb)
    lying[start + 24 : start + 28] = (1000).to_bytes(4, "little")
    with pytest.raises(InputError, match="damaged or cut short"):
        read_all(tmp_path, bytes(lying))
