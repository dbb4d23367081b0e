"""The sheet of a picture: its size in square pixels, letters for the sides, and the PNG that remembers its source."""

from io import BytesIO
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont, PngImagePlugin

# The longer side of a picture of which nobody said how large it should be.
SMALLEST, LARGEST = 256, 1024
# The keyword of the text in a PNG that tells what it was drawn from (PNG 11.3.4.3).
SOURCE = "dcmtools-source"


def fitted(image: Image.Image, tall: float = 1.0, size: int | None = None) -> Image.Image:
    """The image in square pixels, its longer side `size` long; `tall` is the height of its pixels by their width."""
    wide, high = float(image.width), image.height * tall
    longer = max(wide, high)
    factor = (size or min(max(longer, SMALLEST), LARGEST)) / longer
    new = max(1, round(wide * factor)), max(1, round(high * factor))
    return image if new == image.size else image.resize(new, Image.Resampling.BICUBIC)


def lettered(image: Image.Image, left: str, right: str) -> Image.Image:
    """The image with letters at the middle of its left and right edges."""
    size = max(10, min(image.size) // 14)
    font = ImageFont.load_default(size)
    draw = ImageDraw.Draw(image)
    white, black = (255, 0) if image.mode == "L" else ((255, 255, 255), (0, 0, 0))
    for letter, x, anchor in ((left, size // 3, "lm"), (right, image.width - size // 3, "rm")):
        place = (x, image.height // 2)
        draw.text(
            place, letter, fill=white, font=font, anchor=anchor, stroke_width=max(1, size // 12), stroke_fill=black
        )
    return image


def png(image: Image.Image, source: str) -> bytes:
    """The bytes of a PNG; they tell nothing but the picture and the digest of its source."""
    text = PngImagePlugin.PngInfo()
    text.add_text(SOURCE, source)
    out = BytesIO()
    image.save(out, "PNG", pnginfo=text, optimize=False)
    return out.getvalue()


def source_of(path: Path) -> str | None:
    """The digest of the source that a picture was drawn from; None when there is no such picture."""
    try:
        with Image.open(path, formats=["PNG"]) as image:
            source = image.info.get(SOURCE)
    except (OSError, ValueError, SyntaxError):  # the last one is what Pillow says of a damaged chunk
        return None
    return source if isinstance(source, str) else None
