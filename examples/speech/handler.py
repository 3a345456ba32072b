"""A recording in, the stretches in which somebody speaks out."""

import io
import wave

import numpy as np

from cortex import RequestError

RATE = 16_000
"""Samples a second that the model was trained on."""
CHUNK = 512
"""The model gives one probability for each so many samples: 32 ms."""
CONTEXT = 64
"""So many samples before a chunk are shown to the model with it."""
LONGEST_S = 300
"""Five minutes in CD quality take a few seconds of one core, and almost 1 GiB of memory."""

BEGINS_AT = 0.5
ENDS_BELOW = 0.35
"""Lower than where speech begins, or a soft syllable would cut a sentence in two."""
SHORTEST_SILENCE_S = 0.3
SHORTEST_SPEECH_S = 0.25
MARGIN_S = 0.03
"""Added at both ends of what was found."""


def pre_inference(sample, metadata, request):
    if not isinstance(sample, bytes):
        raise RequestError(415, "send a WAV recording, with the header content-type: audio/wav")
    audio = read_wav(sample)
    request.state["length_s"] = len(audio) / RATE  # `post_inference` needs it
    begin = np.zeros((1, 1, 128), np.float32)  # the model's memory before it has heard anything
    return {"input": frames(audio), "h": begin, "c": begin}


def post_inference(prediction, metadata, request):
    return segments(prediction["speech_probs"], request.state["length_s"])


def read_wav(body):
    """
    Return a recording as the model wants it: float32, one channel, 16,000 samples a second.

    Args:
        body: a WAV file with whole numbers of 8 to 32 bits, any rate, any number of channels.
    """
    try:
        with wave.open(io.BytesIO(body)) as file:
            width, channels, rate = file.getsampwidth(), file.getnchannels(), file.getframerate()
            data = file.readframes(file.getnframes())
    except (wave.Error, EOFError) as error:
        reason = str(error) or "it ends too early"
        raise RequestError(400, f"this is no WAV file of whole numbers: {reason}") from error
    if width > 4 or not 4_000 <= rate <= 192_000:
        raise RequestError(400, f"{rate} samples a second of {8 * width} bits are no recording of speech")
    count = len(data) // (width * channels)
    if count == 0:
        raise RequestError(400, "the recording is empty")
    if count > LONGEST_S * rate:
        raise RequestError(413, f"the recording is longer than {LONGEST_S} s", limit_s=LONGEST_S)

    # Whatever their width, samples become the upper bytes of 32-bit integers. Those of 8 bits have no sign.
    narrow = np.frombuffer(data, np.uint8, count * channels * width).reshape(-1, width)
    wide = np.zeros((len(narrow), 4), np.uint8)
    wide[:, 4 - width :] = narrow ^ 0x80 if width == 1 else narrow
    audio = wide.view("<i4").reshape(count, channels).mean(axis=1, dtype=np.float32) / np.float32(2**31)
    return resampled(audio, rate).astype(np.float32, copy=False)


def resampled(audio, rate):
    """Return the samples at `RATE`: the same spectrum, cut off or filled up with nothing at its end."""
    if rate == RATE:
        return audio
    seconds = -(-len(audio) // rate)  # whole ones: a transform of any odd length may take a hundred times as long
    padded = np.zeros(seconds * rate, np.float32)
    padded[: len(audio)] = audio
    result = np.fft.irfft(np.fft.rfft(padded), seconds * RATE) * (RATE / rate)
    return result[: max(round(len(audio) * RATE / rate), 1)]


def frames(audio):
    """Cut samples into chunks, each with the end of the one before it: shape (chunks, CONTEXT + CHUNK)."""
    count = -(-len(audio) // CHUNK)  # rounded up: the last chunk is filled with silence
    chunks = np.zeros((count, CHUNK), np.float32)
    chunks.ravel()[: len(audio)] = audio
    before = np.zeros((count, CONTEXT), np.float32)
    before[1:] = chunks[:-1, -CONTEXT:]
    return np.hstack([before, chunks])


def segments(probabilities, length_s):
    """
    Return where speech begins and ends, as [{"start_s": …, "end_s": …}, …].

    Args:
        probabilities: that somebody speaks, one for each chunk.
        length_s: of the recording.
    """
    chunk_s = CHUNK / RATE
    found = []
    start = silent = None  # the chunk in which speech began, and the first silent one since
    for chunk, probability in enumerate(probabilities):
        if probability >= BEGINS_AT:
            start, silent = chunk if start is None else start, None
        elif start is not None and probability < ENDS_BELOW:
            silent = chunk if silent is None else silent
            if (chunk + 1 - silent) * chunk_s >= SHORTEST_SILENCE_S:
                found.append((start * chunk_s, silent * chunk_s))
                start = silent = None
    if start is not None:
        found.append((start * chunk_s, length_s if silent is None else silent * chunk_s))
    return [
        {"start_s": round(max(start_s - MARGIN_S, 0), 2), "end_s": round(min(end_s + MARGIN_S, length_s), 2)}
        for start_s, end_s in found
        if end_s - start_s >= SHORTEST_SPEECH_S
    ]
