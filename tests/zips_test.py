"""Zips of strangers: sound ones are opened, whatever is around them; others are refused unread."""

import copy
import io
import random
import struct
import zipfile

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastdiff_jax import zips
from fastdiff_jax.data import archive
from fastdiff_jax.interop import npz

LIMITS = {"torch": zips.USUAL, "data": archive.LIMITS, "npz": npz.LIMITS}
END, LISTED = b"PK\x05\x06", b"PK\x01\x02"
SMALL = zips.Limits(entries=3, ratio=2, small=99, name=5)


def zipped(names, size=10, compression=zipfile.ZIP_STORED, change=lambda file: None, comment=b""):
    """A zip of zeros, whose list of entries is changed before it is written."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as file:
        for name in names:
            file.writestr(name, bytes(size))
        change(file)
        file.comment = comment
    return buffer.getvalue()


def refused(content, words, limits=zips.USUAL):
    with pytest.raises(zipfile.BadZipFile, match=words) as caught:
        zips.opened(io.BytesIO(content), limits)
    assert "\n" not in str(caught.value)


@given(
    st.dictionaries(st.text("abc./é-漢", min_size=2, max_size=9).filter(lambda name: ".." not in name
        and name[0] != "/"), st.binary(max_size=60), max_size=6),
    st.sampled_from(zips.METHODS), st.text("no end", max_size=30),
    st.binary(max_size=20).filter(lambda ahead: b"PK" not in ahead), st.booleans(),
)  # fmt: skip
def test_a_sound_zip_is_opened(entries, method, comment, ahead, zip64):
    """With a comment, behind other bytes, and with the ends of zip64."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as file:
        for name, content in entries.items():
            with file.open(name, "w", force_zip64=zip64) as entry:
                entry.write(content)
        file.comment = comment.encode()
    content = in_zip64(buffer.getvalue()) if zip64 else buffer.getvalue()
    for limits in LIMITS.values():
        with zips.opened(io.BytesIO(ahead + content), limits) as file:
            assert {name: file.read(name) for name in file.namelist()} == entries


def in_zip64(content, size=None, at=None, apart=b""):
    """The zip with the ends of zip64; with nothing between these, they alone say how long its list is."""
    place = content.rindex(END)
    length, offset = struct.unpack_from("<2L", content, place + 12)
    record = struct.pack(
        "<4sQ2H2L4Q", b"PK\x06\x06", 44, 45, 45, 0, 0, *[content.count(LISTED)] * 2, size or length, offset
    )
    locator = struct.pack("<4sLQL", b"PK\x06\x07", 0, place if at is None else at, 1)
    end = bytearray(content[place:])
    end[12:16] = end[12:16] if apart else b"\xff" * 4
    return content[:place] + record + apart + locator + bytes(end)


def test_a_path_is_opened_once_and_closed(tmp_path, monkeypatch):
    path, files, errors, real = tmp_path / "x.zip", [], [], open
    monkeypatch.setattr(zips, "open", lambda *how: files.append(real(*how)) or files[-1], raising=False)
    path.write_bytes(zipped("ab"))
    with zips.opened(path) as file:
        assert file.read("b") == bytes(10) and not files[0].closed
    assert file.fp is None and len(files) == 1 and files[0].closed
    damaged = zipped("ab").replace(LISTED, b"PK\1\3")
    for content, limits, kind in (
        (zipped("ab"), SMALL._replace(name=0), zips.Refused), (zipped("abcd"), SMALL, zips.Refused),
        (damaged, SMALL, zips.Damaged), (b"", SMALL, zips.Damaged),
    ):  # fmt: skip
        path.write_bytes(content)
        with pytest.raises(kind) as caught:
            zips.opened(path, limits)
        errors.append(caught)  # which keeps the file from being closed as forgotten
    assert len(files) == 5 and all(file.closed for file in files)


def test_a_file_that_was_handed_over_stays_open():
    buffer = io.BytesIO(zipped("ab"))
    zips.opened(buffer).close()
    with pytest.raises(zips.Refused):
        zips.opened(buffer, SMALL._replace(name=0))
    assert not buffer.closed


@pytest.mark.parametrize("error", [struct.error("of a length"), OSError("of the disk"), OverflowError()])
def test_whatever_goes_wrong_while_it_is_opened_is_damage(monkeypatch, error):
    def fail(*_):
        raise error

    for owner, name in ((zips, "_lists"), (zips, "Archive")):
        with monkeypatch.context() as patched:
            patched.setattr(owner, name, fail)
            refused(zipped("a"), r"it is damaged or no zip \(" + (str(error) or "OverflowError"))


def test_a_comment_with_another_end_is_refused(monkeypatch):
    """A whole one, which fits as well, and a signature, which zipfile takes for one."""
    monkeypatch.setattr(zips, "Archive", None)
    whole = END + bytes(18)
    for comment in (whole, b"and " + whole, whole + bytes(12), b"said " + END, END + bytes(16) + b"\1\0a"):
        refused(zipped("ab", comment=comment), "its comment holds another end of a zip")


@pytest.mark.parametrize("more", [b"\n", bytes(3), END])
def test_what_follows_its_end_is_damage(more):
    """Else it would be part of a comment that is longer than it says."""
    refused(zipped("ab", comment=b"said") + more, "no list of entries is found at its end")


def test_the_place_of_the_list_may_look_like_an_end():
    content = bytearray(zipped("a"))
    content[-6:-2] = END
    refused(bytes(content), "'a' begins ahead of the file")  # as the list is elsewhere: it was found


@pytest.mark.parametrize("limits", LIMITS.values(), ids=LIMITS)
@pytest.mark.parametrize("name, words", [
    ("/a", "'/a' points out of it"), ("\\a", "points out"), ("../a", r"'\.\./a' points out of it"),
    ("a/..", "points out"), ("a/../../b", "points out"), ("a\\..\\..\\b", "points out"),
    ("c:/b", "points out"), ("C:b", "points out"), ("c:\\b", "points out"),
    ("a" * 1001, r"'a{80}\.\.\.' has no usable name"),
    ("\x1b[31m", r"'\\x1b\[31m' has control characters"), ("a\nb", "has control characters"),
])  # fmt: skip
def test_bad_names_are_refused(name, words, limits):
    refused(zipped(["good", name]), words, limits)


def test_a_colon_is_no_drive():
    names = ["12:30.png", "class:1/a.png", "ab:c"]
    with zips.opened(io.BytesIO(zipped(names))) as file:
        assert file.namelist() == names


@pytest.mark.parametrize("ahead", range(4, 20))
def test_what_is_too_short_for_zip64_is_no_zip64(ahead):
    """A locator's signature with fewer bytes behind it than a locator has; zipfile makes of it what it will."""
    content = b"PK\x06\x07" + bytes(ahead - 4) + zipped([])
    try:
        with zips.opened(io.BytesIO(content)) as file:
            assert not file.namelist()
    except zips.Damaged as error:
        assert str(error).startswith("it is damaged or no zip (")


def test_a_list_is_counted_over_the_seams_of_its_chunks(monkeypatch):
    content = zipped([f"{number}" for number in range(40)])
    for size in (5, 7, 64, 1000):
        monkeypatch.setattr(zips, "CHUNK", size)
        refused(content, "more than 39 entries", zips.USUAL._replace(entries=39))
        zips.opened(io.BytesIO(content), zips.USUAL._replace(entries=40)).close()


def test_names_that_are_not_what_they_seem_are_refused():
    content = zipped("a")
    with zipfile.ZipFile(io.BytesIO(content)) as file:
        (entry,) = file.infolist()
    zips.check([entry], len(content))
    for seen, said, words in (("b", "a", "'a' is named for something else, 'b'"), ("", "", "'' has no usable"),
                              ("a", "a\0.png", r"'a\\x00.png' has control characters")):  # fmt: skip
        entry.filename, entry.orig_filename = seen, said
        with pytest.raises(zipfile.BadZipFile, match=words):
            zips.check([entry], len(content))


@pytest.mark.parametrize("limits", LIMITS.values(), ids=LIMITS)
def test_what_cannot_be_read_plainly_is_refused(limits):
    def encrypt(file):
        file.filelist[0].flag_bits |= 1

    refused(zipped("ab", change=encrypt), "its entry 'a' is encrypted", limits)
    words = "'a' is neither stored nor deflated, but of method 14"
    refused(zipped("a", compression=zipfile.ZIP_LZMA), words, limits)
    with pytest.warns(UserWarning, match="Duplicate"):
        content = zipped("aa")
    refused(content, "its entry 'a' is there twice", limits)


@pytest.mark.parametrize("limits", LIMITS.values(), ids=LIMITS)
@pytest.mark.parametrize("count, size, shift", [(2, 10, 0), (50, 10, 0), (2, 500, 300), (2, 500, -10_000)])
def test_entries_that_overlap_are_refused(limits, count, size, shift):
    """At one place, fewer bytes than the list has; in part; and ahead of the file."""

    def change(file):
        for number in range(1, count):
            other = copy.copy(file.filelist[0])
            other.filename = other.orig_filename = f"b{number}"
            other.header_offset += shift
            file.filelist.append(other)

    with zipfile.ZipFile(io.BytesIO(zipped(["a", "end"], size))) as file:
        entries = file.infolist()
    other = copy.copy(entries[0])
    other.filename = other.orig_filename = "b"
    other.header_offset += shift
    words = "so they overlap" if shift >= 0 else "begins ahead of the file"
    with pytest.raises(zipfile.BadZipFile, match=words):
        zips.check([*entries, other], 10_000, limits)
    if shift >= 0:  # which can be written
        refused(zipped(["a", "end"], size, change=change), "so they overlap", limits)


@pytest.mark.parametrize("more", [0, 1])
@pytest.mark.parametrize("names, renamed", [
    ("ab", None), ("é漢", None), (["#e#", "#o#"], {b"#e#": b"#\x82#", b"#o#": b"#\x93#"}),
])  # fmt: skip
def test_entries_end_where_their_list_begins(names, renamed, more):
    """Names count as the bytes that they have in the zip: in UTF-8, or as é and ô in the code page of DOS."""

    def change(file):
        file.filelist[1].compress_size = file.filelist[1].file_size = 10 + more

    content = zipped(names, change=change)
    for old, new in (renamed or {}).items():
        assert content.count(old) == 2
        content = content.replace(old, new)
    if more:
        refused(content, "more bytes than the file has")
    else:
        zips.opened(io.BytesIO(content)).close()


@pytest.mark.parametrize("change, words", [
    (dict(entries=3), "more than 3 entries"), (dict(small=99, ratio=2), "'a' claims 10,000 bytes out of"),
    (dict(small=4000, ratio=200), "'a' claims 10,000 bytes out of 27"), (dict(small=5000, ratio=200), None),
    (dict(name=0), "no usable name"), (dict(entries=4, name=1, ratio=2000, small=0), None),
])  # fmt: skip
def test_limits(change, words):
    content = zipped("abcd", 10_000, zipfile.ZIP_DEFLATED)
    if words:
        refused(content, words, zips.Limits(**change))
    else:
        zips.opened(io.BytesIO(content), zips.Limits(**change)).close()


@pytest.mark.parametrize("form", ["plain", "comment", "zip64", "apart"])
@pytest.mark.parametrize("count, name, words", [
    (4, "", "it has more than 3 entries"), (3, "long" * 25, "claims .* more than 3 entries need or the file"),
])  # fmt: skip
def test_a_long_list_is_not_read(monkeypatch, form, count, name, words):
    content = zipped([f"{name}{n}" for n in range(count)], comment=b"said" * (form == "comment"))
    if form in ("zip64", "apart"):
        content = in_zip64(content, apart=b"more" * (form == "apart"))
    monkeypatch.setattr(zips, "Archive", None)
    refused(content, words, SMALL._replace(name=200))


def test_entries_are_counted_again_after_they_are_read():
    with zipfile.ZipFile(io.BytesIO(zipped("abcd"))) as file:
        entries = file.infolist()
    with pytest.raises(zipfile.BadZipFile, match="more than 3 entries"):
        zips.check(entries, 1000, SMALL)


@pytest.mark.parametrize("change", [
    dict(size=1 << 50), dict(size=1 << 50, at=1 << 63), dict(size=1 << 50, apart=b"more"), dict(size=3 << 30)
])  # fmt: skip
def test_a_list_in_zip64_is_measured_too(monkeypatch, change):
    content = in_zip64(zipped("a"), **change)
    monkeypatch.setattr(zips, "Archive", None)
    refused(content, f"claims {change['size']:,} bytes")


@pytest.mark.parametrize("locator", [b"", struct.pack("<4sLQL", b"PK\x06\x07", 0, 0, 1)])
@pytest.mark.parametrize("length", [115, 0xFFFFFFFF])
def test_a_list_is_no_longer_than_the_file(monkeypatch, length, locator):
    """Nor is the length that stands for one in zip64, whose end is missing: zipfile reads as many bytes."""
    content, place = zipped("a"), -22
    end = content[place:]
    length = min(length + len(locator), 0xFFFFFFFF)
    content = content[:place] + locator + end[:12] + struct.pack("<L", length) + end[16:]
    assert len(content) < length
    monkeypatch.setattr(zips, "Archive", None)
    refused(content, f"claims {length:,} bytes")


@pytest.mark.parametrize("content, words", [
    (b"", r"damaged or no zip \(an empty file"), (b"PK\x03\x04" + bytes(1000), "no list of entries"),
    (END, "no list of entries"), (END + bytes(6), "no list of entries"),
    (zipped("ab")[:-30], "no list of entries"),
    (zipped("ab").replace(LISTED, b"PK\1\3"), r"it is damaged or no zip \(Bad magic"),
])  # fmt: skip
def test_what_is_no_zip_is_refused(content, words):
    refused(content, words)


def test_damage_ends_in_one_exception():
    """Bytes that are flipped or overwritten, and cuts anywhere; reading what opens may end in any DAMAGE."""
    generator, tally = random.Random(0), {"refused": 0, "damaged": 0, "read": 0}
    sources = [zipped(["a.png", "é/b", "c"], 40, method) for method in zips.METHODS]
    ends = in_zip64(zipped([]))  # no entries ahead of them, nor of the last two an end of zip64
    for content in (*sources, in_zip64(sources[0]), ends, ends[zips.END64_BYTES :], zipped([])):
        for number in range(700):
            made, at = bytearray(content), generator.randrange(len(content))
            if number % 4 == 0:
                made[at] ^= 1 << generator.randrange(8)
            elif number % 4 == 1:
                made[at : at + 4] = b"\xff" * 4
            elif number % 4 == 2:
                del made[at : at + generator.randrange(1, 40)]
            else:
                del made[:at]
            try:
                file = zips.opened(io.BytesIO(made))
            except zipfile.BadZipFile as error:
                assert "\n" not in str(error)
                tally["refused"] += 1
                continue
            with file:
                try:
                    for name in file.namelist():
                        file.read(name)
                    tally["read"] += 1
                except zips.DAMAGE:
                    tally["damaged"] += 1
    assert min(tally.values()) > 10, tally
