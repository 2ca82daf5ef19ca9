"""Images and archives that do harm, made for the tests and for fuzz.py."""

import io
import struct
import zipfile
import zlib

import cv2
import numpy as np
from PIL import Image


def photograph(side=200):
    """A picture with its top and its left brighter, so that a turned one can be told."""
    ramp = np.linspace(255, 0, side).astype(np.uint8)
    return np.dstack([np.tile(ramp, (side, 1)), np.tile(ramp[:, None], (1, side))] * 2)[:, :, :3]


def encoded(suffix, image=None):
    return cv2.imencode(suffix, photograph() if image is None else image)[1].tobytes()


def pillow(mode, kind, **options):
    file = io.BytesIO()
    Image.fromarray(photograph()[:, :, ::-1]).convert(mode).save(file, kind, **options)
    return file.getvalue()


def turned():
    """A JPEG whose EXIF says: turn me by a quarter to see me upright."""
    exif = Image.Exif()
    exif[0x112] = 6
    return pillow("RGB", "JPEG", exif=exif)


def png_bomb(side):
    """A PNG that says it has side x side pixels, black ones, in a thousandth of the bytes."""

    def chunk(kind, data):
        body = kind + data
        return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))

    deflate = zlib.compressobj(9, zlib.DEFLATED, -15)
    rows = deflate.compress(bytes((3 * side + 1) * 100)) + deflate.flush(zlib.Z_FULL_FLUSH)
    rows = b"\x78\xda" + rows * (side // 100) + deflate.flush()
    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    chunks = chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunks


def used_images():
    """{what: bytes} of odd images that OpenCV reads."""
    return {
        "PNG": pillow("RGB", "PNG"),
        "WebP": pillow("RGB", "WEBP"),
        "BMP": pillow("RGB", "BMP"),
        "grey": pillow("L", "JPEG"),
        "CMYK": pillow("CMYK", "JPEG"),
        "16 bit": encoded(".png", photograph().astype(np.uint16) * 257),
        "alpha": pillow("RGBA", "PNG"),
        "turned by EXIF": turned(),
        "1x1": encoded(".jpg", photograph(1)),
    }


BMP_HEADER = (54, 0, 0, 54, 40, 2**30, 2**30, 1, 24, 0, 0, 0, 0, 0, 0)  # 40: that much follows


def refused_images():
    """{what: bytes} of files named as images that OpenCV refuses."""
    jpeg, png = encoded(".jpg"), encoded(".png")
    cut = {f"JPEG cut at {n} tenths": jpeg[: len(jpeg) * n // 10] for n in range(1, 10)}
    cut |= {f"PNG cut at {n} tenths": png[: len(png) * n // 10] for n in range(1, 10)}
    return cut | {
        "empty": b"",
        "text": b"A letter.\n",
        "HTML": b"<!doctype html><html><body>404 Not Found</body></html>\n" * 20,
        "20000x20000": png_bomb(20000),
        "millions wide": b"BM" + struct.pack("<IHHIIiiHHIIiiII", *BMP_HEADER),
    }


def lie_about_size(archive, name, size):
    """Let the directory of a zip say that an entry has `size` bytes."""
    with zipfile.ZipFile(archive) as file:
        entry = file.getinfo(name)
    data = bytearray(archive.read_bytes())
    directory = data.rindex(b"PK\x01\x02", 0, data.rindex(name.encode()))
    for place in (directory + 24, entry.header_offset + 22):
        data[place : place + 4] = struct.pack("<I", size)
    archive.write_bytes(data)
