"""Encrypted dumps, made here by openssl as the kernel makes them, read with their key."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from typing import Tuple

import pytest
from build_vmcore import dump_header, page_of
from hosts import wchan
from test_vmcore_files import DUMP

from plugin.errors import DumpError
from plugin.vmcore import open_memory
from plugin.vmcore.encrypted import decrypted
from tests.forge.machine import Machine

pytest.importorskip("cryptography", reason="without cryptography nothing is decrypted")
if shutil.which("openssl") is None:
    pytest.skip("no openssl to encrypt with", allow_module_level=True)

METHODS = {"AES-256-CBC": 1, "ChaCha20": 2}


def openssl(*words: str, data: bytes = b"") -> bytes:
    return subprocess.run(["openssl", *words], input=data, capture_output=True, check=True).stdout


@pytest.fixture(scope="module")
def owner(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An RSA key, and that of somebody else beside it."""
    folder = tmp_path_factory.mktemp("keys")
    for name in ("private.pem", "other.pem"):
        openssl("genrsa", "-out", str(folder / name), "2048")
    openssl(
        "rsa", "-in", str(folder / "private.pem"), "-pubout", "-out", str(folder / "public.pem")
    )
    return folder


def encrypt(plain: bytes, owner: Path, method: str, padding: str) -> Tuple[bytes, bytes]:
    """(the dump encrypted, struct kerneldumpkey), as sys/kern/kern_shutdown.c has it."""
    secret, iv = os.urandom(64), os.urandom(32)
    wrapped = openssl(
        "pkeyutl", "-encrypt", "-pubin", "-inkey", str(owner / "public.pem"),
        "-pkeyopt", f"rsa_padding_mode:{padding}", data=secret,
    )  # fmt: skip
    used = secret[:32].hex()
    if method == "AES-256-CBC":
        start = iv[:16].hex()
        data = openssl("enc", "-aes-256-cbc", "-nopad", "-K", used, "-iv", start, data=plain)
    else:
        start = (bytes(8) + iv[:8]).hex()
        data = openssl("enc", "-chacha20", "-K", used, "-iv", start, data=plain)
    key = bytes([METHODS[method]]) + iv + len(wrapped).to_bytes(4, "big") + wrapped
    return data, key


@pytest.mark.parametrize("padding", ["oaep", "pkcs1"])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("device", [False, True])
def test_an_encrypted_dump_is_read_byte_for_byte_with_its_key(
    tmp_path: Path, owner: Path, method: str, padding: str, device: bool
) -> None:
    data, key = encrypt(DUMP, owner, method, padding)
    path = tmp_path / ("ada0p3" if device else "vmcore_encrypted.0")
    if device:
        head = dump_header(len(DUMP), keysize=len(key))
        path.write_bytes(bytes(65536) + head + key + data + head)
    else:
        path.write_bytes(data)
        (tmp_path / "key.0").write_bytes(key)
    plain = decrypted(path, owner / "private.pem", spool_dir=tmp_path / "spool")
    assert Path(plain).read_bytes() == DUMP
    assert Path(plain).stat().st_mode & 0o777 == 0o600
    with open_memory(plain) as core:
        assert core.read_physical(0x1064, 8) == page_of(1)[100:108]
    # The second time it is there already.
    before = Path(plain).stat().st_mtime_ns
    assert decrypted(path, owner / "private.pem", spool_dir=tmp_path / "spool") == plain
    assert Path(plain).stat().st_mtime_ns == before


def test_what_a_copy_lost_its_end_of_is_decrypted_as_far_as_it_goes(
    tmp_path: Path, owner: Path
) -> None:
    data, key = encrypt(DUMP, owner, "AES-256-CBC", "oaep")
    (tmp_path / "key.0").write_bytes(key)
    path = tmp_path / "vmcore_encrypted.0"
    path.write_bytes(data[:-1000])
    plain = Path(decrypted(path, owner / "private.pem", spool_dir=tmp_path / "spool")).read_bytes()
    assert len(plain) == (len(DUMP) - 1000) // 16 * 16
    assert plain == DUMP[: len(plain)]


@pytest.mark.parametrize(
    ("key", "private", "says"),
    [
        ("whole", "other.pem", "is not the key that .* was encrypted for"),
        ("whole", "public.pem", "is no private key in PEM"),
        ("whole", "nothing.pem", "No such file"),
        ("short", "private.pem", "is damaged"),
        ("method", "private.pem", "method 9 that is not known"),
        ("none", "private.pem", r"key\.0: No such file"),
    ],
)
def test_what_does_not_fit_is_named(
    tmp_path: Path, owner: Path, key: str, private: str, says: str
) -> None:
    data, whole = encrypt(DUMP, owner, "ChaCha20", "oaep")
    (tmp_path / "vmcore_encrypted.0").write_bytes(data)
    made = {"whole": whole, "short": whole[:50], "method": b"\x09" + whole[1:]}.get(key)
    if made is not None:
        (tmp_path / "key.0").write_bytes(made)
    with pytest.raises(DumpError, match=says):
        decrypted(tmp_path / "vmcore_encrypted.0", owner / private, spool_dir=tmp_path / "spool")


def test_the_shell_takes_the_key_and_says_where_the_copy_is(tmp_path: Path, owner: Path) -> None:
    made = Machine(1402000)
    made.procs.process("sleepy").thread().sleeps(made.take(8), "nanslp")
    vmcore, kernel = made.write(tmp_path)
    data, key = encrypt(vmcore.read_bytes(), owner, "AES-256-CBC", "oaep")
    (tmp_path / "vmcore_encrypted.1").write_bytes(data)
    (tmp_path / "key.1").write_bytes(key)
    words = ["-k", str(kernel), str(tmp_path / "vmcore_encrypted.1")]
    status, _, error = wchan(*words, "kthreads")
    assert status == 1
    assert "--key FILE names the private key" in error
    status, out, _ = wchan("--key", str(owner / "private.pem"), *words, "kthreads")
    assert status == 0
    assert "sleepy" in out
    assert "the dump was decrypted; the copy stays in" in out
