"""Encrypted dumps, decrypted once into the cache with the private key of whom they are for.

The kernel encrypts a dump with a key of its own and that with the public key that
dumpon(8) was given: struct kerneldumpkey (sys/sys/kerneldump.h), which savecore(8) leaves as
key.N beside vmcore_encrypted.N, and which lies before the dump on its device.  AES-256-CBC from
12.0 on, ChaCha20 from 13.0; the key is wrapped by OAEP, to 12.x by PKCS 1.5
(sbin/decryptcore/decryptcore.c).
"""

from __future__ import annotations

import errno
import importlib
import os
import re
import struct
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any, Callable, List, NamedTuple, Optional, Tuple

from plugin.cachedir import cache_path, ours, writable
from plugin.errors import DumpError
from plugin.vmcore.file import DumpFile
from plugin.vmcore.kerneldump import last_header
from plugin.vmcore.spool import PathLike, Progress, compression, digest, write_sparse

#: kdk_encryption, kdk_iv and kdk_encryptedkeysize, which is big-endian
_KEY = struct.Struct(">B32sI")
_AES_256_CBC, _CHACHA20 = 1, 2
#: KERNELDUMP_KEY_MAX_SIZE; both ciphers use the first half
_KEY_SIZE, _USED = 64, 32
_MOST_KEY = 1 << 16
_CHUNK = 1 << 20
_NAME = re.compile(r"vmcore_encrypted\.(\d+|last)(?:\.\w+)?$")


class _Parts(NamedTuple):
    """Where in the file the encrypted bytes lie, and the struct kerneldumpkey."""

    start: int
    end: int
    key: bytes


def decrypted(
    path: PathLike,
    private_key: PathLike,
    *,
    spool_dir: Optional[PathLike] = None,
    progress: Optional[Progress] = None,
) -> str:
    """The path of a decrypted copy of an encrypted dump, made where there is none yet.

    ``private_key`` is a file in PEM, ``path`` what savecore(8) left or a dump device.
    DumpError where one of them is none, or they do not belong together.
    """
    name = os.fspath(path)
    file = DumpFile(name)
    try:
        parts = _parts(file, name)
        cipher, wrapped = _cipher_of(parts.key, name)
        key = _unwrap(wrapped, os.fspath(private_key), name)
        folder = writable(cache_path() if spool_dir is None else Path(spool_dir))
        status = os.fstat(file.fd)
        what = f"{os.path.realpath(name)} {status.st_size} {status.st_mtime_ns} {status.st_ino}"
        ready = folder / f"{digest(what)}-{digest(parts.key.hex())}.decrypted"
        if ready.is_file() and ours(ready):
            return str(ready)
        _write(file, parts, cipher(key), ready, name, progress)
        return str(ready)
    finally:
        file.close()


def _parts(file: DumpFile, name: str) -> _Parts:
    header = last_header(file)
    if header is not None and header.keysize:
        at = header.start - header.keysize
        if not at >= 0 or header.keysize > _MOST_KEY:
            raise DumpError(f"{name} is too short for the dump that it ends with: copy it whole")
        end = header.start + header.extent
        return _Parts(header.start, end, file.read(at, header.keysize))
    match = _NAME.match(os.path.basename(name))
    beside = os.path.join(os.path.dirname(name), f"key.{match.group(1)}") if match else ""
    if not match:
        raise DumpError(
            f"{name} is no encrypted dump: those are called vmcore_encrypted.N, key.N beside them"
        )
    try:
        with open(beside, "rb") as key:
            return _Parts(0, file.end, key.read(_MOST_KEY))
    except OSError as error:
        raise DumpError(
            f"{beside}: {error.strerror}; it holds the key of {name}, which savecore wrote with it"
        ) from None


def _cipher_of(key: bytes, name: str) -> Tuple[Callable[[bytes], Any], bytes]:
    """(what makes the decryptor of a key, the wrapped key) out of a struct kerneldumpkey."""
    if len(key) < _KEY.size:
        raise DumpError(f"the key of {name} is damaged: it has {len(key)} bytes")
    method, iv, size = _KEY.unpack_from(key)
    wrapped = key[_KEY.size : _KEY.size + size]
    if method not in (_AES_256_CBC, _CHACHA20) or len(wrapped) != size or not size:
        raise DumpError(f"the key of {name} is damaged, or of a method {method} that is not known")
    ciphers = _library("cryptography.hazmat.primitives.ciphers", name)

    def make(secret: bytes) -> Any:
        if method == _AES_256_CBC:
            algorithm = ciphers.algorithms.AES(secret[:_USED])
            return ciphers.Cipher(algorithm, ciphers.modes.CBC(iv[:16])).decryptor()
        # A block counter of 64 bits that begins at 0, then what the dump says.
        nonce = bytes(8) + iv[:8]
        algorithm = ciphers.algorithms.ChaCha20(secret[:_USED], nonce)
        return ciphers.Cipher(algorithm, mode=None).decryptor()

    return make, wrapped


def _library(module: str, name: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError:
        raise DumpError(
            f"{name} is encrypted and nothing here decrypts it: install the cryptography module "
            "(pip install cryptography), or use decryptcore(8) where the dump was made"
        ) from None


def _unwrap(wrapped: bytes, private_key: str, name: str) -> bytes:
    """The dump's own key."""
    loading = _library("cryptography.hazmat.primitives.serialization", name)
    padding = _library("cryptography.hazmat.primitives.asymmetric.padding", name)
    hashes = _library("cryptography.hazmat.primitives.hashes", name)
    try:
        with open(private_key, "rb") as file:
            owner = loading.load_pem_private_key(file.read(_MOST_KEY), None)
        if not hasattr(owner, "decrypt"):
            raise DumpError(f"{private_key} is no RSA key")
    except OSError as error:
        raise DumpError(f"{private_key}: {error.strerror}") from None
    except TypeError:
        raise DumpError(
            f"{private_key} is protected by a passphrase: openssl rsa -in ... -out ... takes it off"
        ) from None
    except ValueError:
        raise DumpError(f"{private_key} is no private key in PEM") from None
    ways: List[Any] = [
        padding.OAEP(padding.MGF1(hashes.SHA1()), hashes.SHA1(), None),  # as OpenSSL does
        padding.PKCS1v15(),
    ]
    for way in ways:
        with suppress(ValueError):
            key: bytes = owner.decrypt(wrapped, way)
            if len(key) == _KEY_SIZE:
                return key
    raise DumpError(f"{private_key} is not the key that {name} was encrypted for")


def _write(
    file: DumpFile,
    parts: _Parts,
    cipher: Any,
    ready: Path,
    name: str,
    progress: Optional[Progress],
) -> None:
    handle, part = tempfile.mkstemp(prefix=ready.name, suffix=".part", dir=str(ready.parent))
    try:
        with os.fdopen(handle, "wb", buffering=0) as out:
            size = parts.end - parts.start
            for at in range(0, size, _CHUNK):
                data = file.read(parts.start + at, min(_CHUNK, size - at))
                # What a copy lost its end of is decrypted as far as there are whole blocks.
                plain = cipher.update(data[: len(data) & ~15 if at + len(data) < size else None])
                if not at and not _is_dump(plain):
                    raise DumpError(f"{name} does not decrypt to a dump: it is damaged")
                write_sparse(out, plain)
                if progress is not None:
                    progress(at + len(data), size)
            out.truncate(out.tell())
        os.replace(part, ready)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise DumpError(f"{name}: no room in {ready.parent} to decrypt it") from None
        raise DumpError(f"{name}: cannot be decrypted: {error.strerror or error}") from None
    finally:
        with suppress(OSError):
            os.unlink(part)


def _is_dump(head: bytes) -> bool:
    return head.startswith((b"minidump FreeBSD/", b"\x7fELF")) or bool(compression(head[:8]))
