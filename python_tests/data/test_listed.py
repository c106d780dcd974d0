"""Labels in tables: CSV for flat folders, Hugging Face's metadata; what does not fit is named."""

from __future__ import annotations

import itertools
import json
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from deevo_ext.data import Transform, image_sets, open_pictures
from deevo_ext.data.other_kind import new_kind
from deevo_ext.data.pictures import Pictures
from deevo_ext.errors import DeevoError

HALF = (0.5, 0.5, 0.5)
PLAIN = Transform(None, None, "bilinear", HALF, HALF)
COLOURS = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255)}


def write(folder: Path, count: int, prefix: str = "") -> list[tuple[str, str]]:
    """Pictures of one colour each; returns their names and colours."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for i in range(count):
        label = list(COLOURS)[i * 7 % 3]
        Image.new("RGB", (4, 4), COLOURS[label]).save(folder / f"{prefix}{i}.png")
        rows.append((f"{prefix}{i}.png", label))
    return rows


def csv_of(path: Path, header: str, rows: list[tuple[str, ...]]) -> Path:
    path.write_text("\n".join([header, *(",".join(row) for row in rows)]) + "\n")
    return path


def colours(pictures: Pictures) -> list[str]:
    """The colour of each picture, by its pixels."""
    names = {colour: name for name, colour in COLOURS.items()}
    return [names[pictures.read(i)[0].getpixel((0, 0))] for i in range(len(pictures))]


def labelled(pictures: Pictures) -> list[str]:
    return [pictures.class_names[pictures.read(i)[1]] for i in range(len(pictures))]


def test_a_csv_labels_a_flat_folder(tmp_path: Path) -> None:
    rows = write(tmp_path / "flat", 9)
    table = csv_of(tmp_path / "labels.csv", "file,label", rows)
    pictures = open_pictures(tmp_path / "flat", labels=table)
    assert pictures.parts == {"all": (0, 9)} and pictures.class_names == ["blue", "green", "red"]
    assert colours(pictures) == labelled(pictures)
    named = open_pictures(tmp_path / "flat", ["red", "grey", "green", "blue"], table)
    assert named.class_names[1] == "grey" and colours(named) == labelled(named)
    # Without suffix, as in competitions' tables, and with a byte order mark.
    ids = [(name.removesuffix(".png"), label) for name, label in rows]
    csv_of(table, "\ufeffid,target", ids)
    assert labelled(open_pictures(tmp_path / "flat", labels=table)) == colours(pictures)


def test_numbers_are_the_classes_own(tmp_path: Path) -> None:
    rows = write(tmp_path / "flat", 3)
    numbers = {"red": "2", "green": "10", "blue": "0"}
    table = csv_of(tmp_path / "l.csv", "image,class", [(n, numbers[label]) for n, label in rows])
    pictures = open_pictures(tmp_path / "flat", labels=table)
    assert pictures.class_names == [str(i) for i in range(11)]
    assert [numbers[c] for c in colours(pictures)] == labelled(pictures)


def test_whole_numbers_may_be_written_as_floating_ones(tmp_path: Path) -> None:
    rows = write(tmp_path / "flat", 12)
    texts = [(name, f"{number}.0") for number, (name, _) in enumerate(rows)]
    texts[4] = (texts[4][0], "4")
    table = csv_of(tmp_path / "l.csv", "file,label", texts)
    pictures = open_pictures(tmp_path / "flat", labels=table)
    assert pictures.class_names == [str(i) for i in range(12)] and pictures.labels is not None
    numbers = dict(zip(pictures.files, pictures.labels.tolist(), strict=True))
    assert numbers == {name: number for number, (name, _) in enumerate(rows)}


def test_parts_by_a_column_make_the_sets_of_a_run(tmp_path: Path) -> None:
    rows = write(tmp_path / "flat", 60)
    split = [(*row, "train" if i < 30 else "test") for i, row in enumerate(rows)]
    table = csv_of(tmp_path / "l.csv", "filename,category,split", split)
    sets = image_sets(
        tmp_path / "flat", PLAIN, labels=table, cache=tmp_path / "c.safetensors",
        workers=0, progress=False,
    )  # fmt: skip
    assert (len(sets.fitness), len(sets.validation), len(sets.test)) == (30, 15, 15)
    for images in (sets.fitness, sets.validation, sets.test):
        pixels = images.pixels(0, len(images))[:, :, 0, 0].tolist()
        names = {colour: name for name, colour in COLOURS.items()}
        expected = [sets.class_names.index(names[tuple(pixel)]) for pixel in pixels]
        assert images.labels.tolist() == expected
    with pytest.raises(DeevoError, match=r"labels are .*l\.csv, but .*c\.safetensors is a file"):
        image_sets(tmp_path / "c.safetensors", PLAIN, labels=table)


@pytest.mark.parametrize(
    ("splits", "sizes"),
    [(["val"], (20, 10, 10)), (["test"], (20, 10, 10)), (["val", "test"], (20, 20, 40))],
)
def test_splits_without_train_make_disjoint_sets(
    tmp_path: Path, splits: list[str], sizes: tuple[int, ...]
) -> None:
    rows = []
    (tmp_path / "flat").mkdir()
    for i in range(40 * len(splits)):
        Image.new("RGB", (4, 4), (i, 0, 0)).save(tmp_path / "flat" / f"{i}.png")
        rows.append((f"{i}.png", "ab"[i % 2], splits[i // 40]))
    table = csv_of(tmp_path / "l.csv", "file,label,split", rows)
    sets = image_sets(
        tmp_path / "flat", PLAIN, labels=table, cache=tmp_path / "c.safetensors",
        workers=0, progress=False,
    )  # fmt: skip
    three = (sets.fitness, sets.validation, sets.test)
    assert tuple(map(len, three)) == sizes
    red = [images.pixels(0, len(images))[:, 0, 0, 0].tolist() for images in three]
    assert sorted(itertools.chain(*red)) == list(range(len(rows)))
    if len(splits) == 2:
        assert min(red[2]) == 40


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_metadata_of_hugging_face(tmp_path: Path, kind: str) -> None:
    for part in ("train", "validation"):
        rows = write(tmp_path / part / "images", 6, part)
        records = [{"file_name": f"images/{name}", "label": label} for name, label in rows]
        table = tmp_path / part / f"metadata.{kind}"
        if kind == "csv":
            csv_of(table, "file_name,label", [tuple(record.values()) for record in records])
        else:
            table.write_text("\n".join(map(json.dumps, records)) + "\n")
    pictures = open_pictures(tmp_path)
    assert pictures.parts == {"train": (0, 6), "val": (6, 12)}
    assert colours(pictures) == labelled(pictures)
    assert pictures.name_of(6).startswith(str(tmp_path / "validation"))


def test_a_table_is_of_one_folder_alone(tmp_path: Path) -> None:
    table = csv_of(tmp_path / "l.csv", "file,label", write(tmp_path / "flat", 20))
    for number, (name, label) in enumerate(write(tmp_path / "loose", 12)):
        (tmp_path / "tree" / label).mkdir(parents=True, exist_ok=True)
        (tmp_path / "loose" / name).rename(tmp_path / "tree" / label / f"{number}.png")
    options = {"cache": tmp_path / "c.safetensors", "workers": 0, "progress": False}
    tested = tmp_path / "tree"
    sets = new_kind(tmp_path / "flat", PLAIN, by_folds=50, test=tested, labels=table, **options)
    assert sets.test is not None and (len(sets.fitness), len(sets.test)) == (20, 12)
    with pytest.raises(DeevoError, match=r"labels are .*l\.csv, but there is no data"):
        image_sets(None, PLAIN, fitness=tested, validation=tested, test=tested, labels=table)


def test_metadata_in_one_folder_and_captions(tmp_path: Path) -> None:
    rows = write(tmp_path / "one", 4)
    csv_of(tmp_path / "one" / "metadata.csv", "file_name,label", rows)
    assert labelled(open_pictures(tmp_path / "one")) == [label for _, label in rows]
    for name, label in write(tmp_path / "tree", 4):
        (tmp_path / "tree" / label).mkdir(exist_ok=True)
        (tmp_path / "tree" / name).rename(tmp_path / "tree" / label / name)
    csv_of(tmp_path / "tree" / "metadata.csv", "file_name,text", [("x.png", "a horse")])
    tree = open_pictures(tmp_path / "tree")
    assert colours(tree) == labelled(tree)


def test_other_labels_are_another_source(tmp_path: Path) -> None:
    rows = write(tmp_path / "flat", 6)
    table = csv_of(tmp_path / "l.csv", "file,label", rows)
    before = open_pictures(tmp_path / "flat", labels=table).digest()
    assert open_pictures(tmp_path / "flat", labels=table).digest() == before
    csv_of(
        table,
        "file,label",
        [(name, label) for (name, _), (_, label) in zip(rows, rows[::-1], strict=True)],
    )
    assert open_pictures(tmp_path / "flat", labels=table).digest() != before


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "lists no pictures"),
        ("file,label\n", "lists no pictures"),
        ("a,b\n0.png,red\n", "no column of files; it has a, b; expected one of file_name, file"),
        ("file,b\n0.png,red\n", "no column of labels; it has file, b"),
        ("file,label\n0.png,\n", "picture 1 has file '0.png' and label ''"),
        ("file,label\n0.png\n", "picture 1 has file '0.png' and label None"),
        ("file,label\n9.png,red\n", r"lists .*9\.png, which is not there"),
        ("file,label\n0.png,red\n0.png,red\n", "1 files are listed more than once"),
        ("file,label,split\n0.png,red,dev\n", "picture 1 is of 'dev'; expected one of train"),
        ("file,label\n0.png,r\u00e9d\n", None),
    ],
)
def test_tables_that_do_not_fit(tmp_path: Path, text: str, message: str | None) -> None:
    write(tmp_path / "flat", 2)
    table = tmp_path / "l.csv"
    table.write_bytes(text.encode() if message else text.encode("latin1"))
    with pytest.raises(DeevoError, match=rf"l\.csv: .*{message or 'cannot be read'}"):
        open_pictures(tmp_path / "flat", labels=table)


def test_classes_that_the_order_has_not(tmp_path: Path) -> None:
    write(tmp_path / "flat", 2)
    table = csv_of(tmp_path / "l.csv", "file,label", [("0.png", "0"), ("1.png", "2")])
    with pytest.raises(DeevoError, match="label 2, but the class order has 2"):
        open_pictures(tmp_path / "flat", ["a", "b"], table)


def test_orientation_is_an_option(tmp_path: Path) -> None:
    pixels = np.zeros((8, 16, 3), np.uint8)
    pixels[:, :8, 0] = 255
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise
    Image.fromarray(pixels).save(tmp_path / "x.png", exif=exif)
    with Image.open(tmp_path / "x.png") as picture:
        picture.load()
    np.testing.assert_array_equal(PLAIN.apply(picture), pixels)
    turned = Transform.from_mapping({"mean": HALF, "std": HALF, "exif": True}, "test")
    np.testing.assert_array_equal(turned.apply(picture), np.rot90(pixels, -1))
    assert turned.pixels() != PLAIN.pixels()
    np.testing.assert_array_equal(turned.apply(pixels), pixels)


def test_further_formats_are_read(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    for suffix, form in ((".jfif", "JPEG"), (".gif", "GIF"), (".avif", "AVIF"), (".GIF", "GIF")):
        Image.new("RGB", (16, 16), (255, 0, 0)).save(tmp_path / "a" / f"x{suffix}", form)
    frames = [Image.new("RGB", (16, 16), colour) for colour in ((255, 0, 0), (0, 0, 255))]
    frames[0].save(tmp_path / "a" / "moving.gif", save_all=True, append_images=frames[1:])
    for name in ("x.heic", "y.HEIC", "notes.txt", "README", "Thumbs.db", ".hidden"):
        (tmp_path / "a" / name).touch()
    with pytest.warns(UserWarning, match=r"by their names: 2 \.heic, 1 no suffix, 1 \.txt$"):
        pictures = open_pictures(tmp_path)
    assert len(pictures) == 5 and not pictures.problems
    for i in range(5):
        red, green, blue = PLAIN.apply(pictures.read(i)[0])[8, 8].tolist()
        assert red > 240 and green < 15 and blue < 15


def test_a_cache_that_went_stale_by_itself_is_made_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DEEVO_CACHE_DIR", str(tmp_path / "caches"))
    folder = tmp_path / "tree"
    for label in COLOURS:
        write(folder / label, 6)

    def means(**keywords: object) -> float:
        sets = image_sets(folder, PLAIN, workers=0, progress=False, **keywords)  # type: ignore[arg-type]
        return float(sets.fitness.pixels(0, len(sets.fitness)).float().mean())

    before = means()
    for path in folder.rglob("*.png"):
        Image.new("RGB", (4, 4), (7, 7, 7)).save(path)
    with pytest.warns(UserWarning, match="its pictures have changed since; it is made anew"):
        assert means() == 7 != before
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert means() == 7
    named = tmp_path / "named.safetensors"
    assert means(cache=named) == 7
    Image.new("RGB", (4, 4), (9, 9, 9)).save(folder / "red" / "0.png")
    with pytest.raises(DeevoError, match="a cache of another source"):
        means(cache=named)  # whose file somebody has named
