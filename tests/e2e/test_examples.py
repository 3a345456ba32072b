"""The examples whose requests are no JSON: deployed and asked as their READMEs say."""

from __future__ import annotations

import io
import json
import re
import wave
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from contract_harness import Answer, Connection, Home, running_home

pytestmark = pytest.mark.slow

Image = pytest.importorskip("PIL.Image", reason="examples/image needs Pillow")

EXAMPLES = Path(__file__).parents[2] / "examples"
SPEECH = (EXAMPLES / "speech" / "speech.wav").read_bytes()
STAR = (EXAMPLES / "image" / "sample.jpg").read_bytes()
SENTENCES = [(0.30, 1.91), (2.81, 3.86)]
"""Where the two sentences of speech.wav are, as `recording/record.sh` put them."""


@pytest.fixture(scope="module")
def home() -> Iterator[Home]:
    with running_home() as home:
        for name in ("speech", "image"):
            home.deploy(EXAMPLES / name)
        yield home


def ask(home: Home, path: str, body: bytes, content_type: str) -> Answer:
    with Connection(home.port) as connection:
        return connection.ask("POST", path, body, {"content-type": content_type})


def hear(home: Home, recording: bytes) -> list[tuple[float, float]]:
    answer = ask(home, "/speech/segments", recording, "audio/wav")
    assert answer.status == 200, answer.body
    return [(segment["start_s"], segment["end_s"]) for segment in answer.json]


def recorded(samples: np.ndarray, *, rate: int, width: int = 2) -> bytes:
    """A WAV file; samples are float of shape (count, channels), from -1 to 1."""
    whole = np.round(samples * (2 ** (8 * width - 1) - 1)).astype("<i4")
    if width == 1:
        whole = whole + 128
    data = whole[..., None].view(np.uint8)[..., :width].tobytes()
    file = io.BytesIO()
    with wave.open(file, "wb") as out:
        out.setnchannels(samples.shape[1])
        out.setsampwidth(width)
        out.setframerate(rate)
        out.writeframes(data)
    return file.getvalue()


def speech() -> np.ndarray:
    """speech.wav as float of shape (count,), 16,000 a second."""
    with wave.open(io.BytesIO(SPEECH)) as file:
        return np.frombuffer(file.readframes(file.getnframes()), "<i2") / 2**15


def pasted(readme: Path) -> list[str]:
    return re.findall(r"^curl .*$", readme.read_text(), re.MULTILINE)


@pytest.mark.parametrize("name", ["speech", "image"])
def test_the_readme_says_what_is_answered(home: Home, name: str) -> None:
    folder = EXAMPLES / name
    (line,) = pasted(folder / "README.md")
    url, content_type, file = re.fullmatch(
        r"curl http://127\.0\.0\.1:8880(\S+) -H 'content-type: (\S+)' --data-binary @(\S+)", line
    ).groups()  # type: ignore[union-attr]
    (documented,) = re.findall(r"^```json\n(.*)\n```$", (folder / "README.md").read_text(), re.MULTILINE)
    answer = ask(home, url, (folder / file).read_bytes(), content_type)
    assert (answer.status, answer.headers["content-type"]) == (200, "application/json")
    assert json.dumps(answer.json) == json.dumps(json.loads(documented))


@pytest.mark.parametrize(
    ("api", "sample"), [("speech/segments", "speech/speech.wav"), ("image/shapes", "image/sample.jpg")]
)
def test_the_command_line_sends_the_content_type(home: Home, api: str, sample: str) -> None:
    assert json.loads(home.cortex("predict", api, EXAMPLES / sample).out)


class TestSpeech:
    def test_the_sentences_are_found_where_they_were_put(self, home: Home) -> None:
        found = hear(home, SPEECH)
        assert np.shape(found) == (2, 2)
        assert np.abs(np.array(found) - SENTENCES).max() < 0.2

    @pytest.mark.parametrize(
        ("rate", "width", "channels"), [(8000, 2, 1), (16000, 1, 1), (22050, 3, 1), (44100, 2, 2), (48000, 4, 3)]
    )
    def test_recordings_of_other_kinds_are_heard_alike(self, home: Home, rate: int, width: int, channels: int) -> None:
        original = speech()
        times = np.arange(round(len(original) / 16000 * rate)) / rate
        samples = np.interp(times, np.arange(len(original)) / 16000, original)
        found = hear(home, recorded(np.repeat(samples[:, None], channels, axis=1), rate=rate, width=width))
        assert np.abs(np.array(found) - hear(home, SPEECH)).max() < 0.1

    def test_silence_is_no_speech(self, home: Home) -> None:
        assert hear(home, recorded(np.zeros((32000, 1)), rate=16000)) == []

    @pytest.mark.parametrize("count", [1, 511, 512, 513])
    def test_very_short_recordings_are_answered(self, home: Home, count: int) -> None:
        assert hear(home, recorded(np.zeros((count, 1)), rate=16000)) == []

    @pytest.mark.parametrize(
        ("body", "content_type", "status", "words"),
        [
            (b"[1]", "application/json", 415, "content-type: audio/wav"),
            (SPEECH, "application/x-www-form-urlencoded", 415, "-H 'content-type: audio/wav'"),
            (b"no wave", "audio/wav", 400, "it ends too early"),
            (SPEECH[:44], "audio/wav", 400, "empty"),
            (SPEECH[:20] + b"\x03" + SPEECH[21:], "audio/wav", 400, "unknown format: 3"),
            (recorded(np.zeros((100, 1)), rate=2**30), "audio/wav", 400, "are no recording of speech"),
            (recorded(np.zeros((301 * 4000, 1)), rate=4000, width=1), "audio/wav", 413, "longer than 300 s"),
        ],
    )
    def test_what_is_no_recording_is_told(
        self, home: Home, body: bytes, content_type: str, status: int, words: str
    ) -> None:
        answer = ask(home, "/speech/segments", body, content_type)
        assert (answer.status, words in answer.body.decode()) == (status, True), answer.body


class TestImage:
    @pytest.mark.parametrize("kind", ["jpeg", "png", "webp"])
    def test_pictures_of_several_kinds_are_seen_alike(self, home: Home, kind: str) -> None:
        answer = ask(home, "/image/shapes", picture(kind), f"image/{kind}")
        assert (answer.status, answer.json["label"]) == (200, "star")
        assert sum(answer.json["probabilities"].values()) == pytest.approx(1, abs=1e-3)

    def test_a_picture_is_turned_as_its_camera_noted(self, home: Home) -> None:
        image = Image.open(io.BytesIO(STAR))
        exif = Image.Exif()
        exif[0x0112] = 8  # to be turned by a quarter to the left
        upright = ask(home, "/image/shapes", encoded(image.rotate(90, expand=True), "png"), "image/png")
        noted = ask(home, "/image/shapes", encoded(image, "png", exif=exif), "image/png")
        assert noted.json == upright.json

    @pytest.mark.parametrize("mode", ["L", "RGBA", "P", "CMYK"])
    def test_colours_of_any_kind_are_taken(self, home: Home, mode: str) -> None:
        body = encoded(Image.open(io.BytesIO(STAR)).convert(mode), "jpeg" if mode in ("L", "CMYK") else "png")
        assert ask(home, "/image/shapes", body, "image/jpeg").json["label"] == "star"

    @pytest.mark.parametrize(
        ("body", "content_type", "status", "words"),
        [
            (b"[1]", "application/json", 415, "content-type: image/jpeg"),
            (STAR, "application/x-www-form-urlencoded", 415, "-H 'content-type: image/jpeg'"),
            (b"no picture", "image/jpeg", 415, "this is no JPEG, PNG or WebP"),
            (STAR[:5000], "image/jpeg", 400, "truncated"),
        ],
    )
    def test_what_is_no_picture_is_told(
        self, home: Home, body: bytes, content_type: str, status: int, words: str
    ) -> None:
        answer = ask(home, "/image/shapes", body, content_type)
        assert (answer.status, words in answer.body.decode()) == (status, True), answer.body

    def test_a_small_file_that_unpacks_to_a_huge_picture_is_not_unpacked(self, home: Home) -> None:
        body = encoded(Image.new("1", (8000, 8000)), "png")
        assert len(body) < 100_000
        answer = ask(home, "/image/shapes", body, "image/png")
        assert (answer.status, answer.json["limit_pixels"]) == (413, 50_000_000)


def picture(kind: str) -> bytes:
    return STAR if kind == "jpeg" else encoded(Image.open(io.BytesIO(STAR)), kind)


def encoded(image: object, kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)  # type: ignore[attr-defined]
    return file.getvalue()
