"""What a file carries: each kind of extra is seen, and nothing is seen in what the remover writes."""

import io

import numpy as np
from PIL import Image

from ppma.privacy.audit.files import checks, picture_extras
from ppma.privacy.removal.writing import part_writer, target


def test_what_the_remover_writes_carries_nothing(tmp_path):
    for layout in ("videos", "frames"):
        path = target(tmp_path, "inp", f"c/{layout}", layout)
        with part_writer(path, "inp", layout, 10.0) as add:
            for _ in range(3):
                add(np.zeros((48, 64, 3), np.uint8))
        assert all(check.held for check in checks(path).values()), checks(path)


def jpeg(**options):
    out = io.BytesIO()
    Image.new("RGB", (16, 16)).save(out, "jpeg", **options)
    return out.getvalue()


def test_extras_of_pictures(tmp_path):
    exif = Image.Exif()
    exif[0x010F] = "a camera"
    assert picture_extras(jpeg()) == [] and picture_extras(jpeg(exif=exif)) == ["APP1 (Exif or XMP)"]
    assert picture_extras(jpeg(comment=b"by me")) == ["a comment"]
    folder = tmp_path / "clip"
    folder.mkdir()
    (folder / "000001.jpg").write_bytes(jpeg(exif=exif))
    found = checks(folder)
    assert found["no metadata"].held is False and "000001.jpg" in found["no metadata"].says and found["no sound"].held
