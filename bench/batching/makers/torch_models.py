"""
Models exported by PyTorch, by both of its exporters. Small: structure is what a proof looks at.

    pip install torch==2.13.0 onnx==1.23.2 onnxscript==0.7.2 transformers==5.17.0
    python bench/batching/makers/torch_models.py FOLDER

What it wrote once is kept in `tests/models/rows`, since PyTorch is nothing that our tests could install.
"""

from __future__ import annotations

import contextlib
import io
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import onnx
import torch
from torch import nn

Exporter = str
"""`script`: traces, the only one until 2.4; `dynamo`: captures a graph with symbolic sizes, the default since 2.9."""

WIDTH = 16
WORDS = 60


class Classifier(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(12, 24), nn.BatchNorm1d(24), nn.GELU(), nn.Dropout(), nn.Linear(24, 3), nn.Softmax(-1)
        )

    def forward(self, x: torch.Tensor) -> Any:
        scores = self.layers(x)
        return scores, scores.argmax(-1)


class Convolutions(nn.Module):
    """Residual blocks, squeeze and excitation, group norm."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.group = nn.GroupNorm(2, 8)
        self.squeeze, self.excite = nn.Conv2d(8, 4, 1), nn.Conv2d(4, 8, 1)
        self.head = nn.Linear(8, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.norm(self.stem(x)))
        y = nn.functional.silu(self.group(self.depthwise(x)))
        gate = self.excite(torch.relu(self.squeeze(nn.functional.adaptive_avg_pool2d(y, 1))))
        x = nn.functional.max_pool2d(x + y * torch.sigmoid(gate), 2)
        return self.head(x.mean((2, 3)))


class UNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.down, self.middle = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 8, 3, padding=1)
        self.up, self.out = nn.ConvTranspose2d(8, 6, 2, stride=2), nn.Conv2d(12, 1, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        a = torch.relu(self.down(x))
        b = torch.relu(self.middle(nn.functional.max_pool2d(a, 2)))
        up = self.up(b) + nn.functional.interpolate(b[:, :6], scale_factor=2, mode="bilinear")
        return torch.sigmoid(self.out(torch.cat([a, up], 1)))


class Encoder(nn.Module):
    """`nn.TransformerEncoder`; with or without a mask of what is padding."""

    def __init__(self, *, rows_first: bool = True) -> None:
        super().__init__()
        self.embed = nn.Embedding(WORDS, WIDTH)
        layer = nn.TransformerEncoderLayer(WIDTH, 4, 24, batch_first=rows_first)
        self.encoder = nn.TransformerEncoder(layer, 1, enable_nested_tensor=False)
        self.head = nn.Linear(WIDTH, 3)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.head(self.encoder(self.embed(ids)))


class MaskedEncoder(Encoder):
    def forward(self, ids: torch.Tensor, is_padding: torch.Tensor) -> torch.Tensor:
        x = self.encoder(self.embed(ids), src_key_padding_mask=is_padding)
        kept = (~is_padding).unsqueeze(-1).to(x.dtype)
        return self.head((x * kept).sum(1) / kept.sum(1).clamp(min=1))


class Attention(nn.Module):
    """As Hugging Face's models had it for years: heads by view and transpose, a mask of large negative numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.places = nn.Embedding(WORDS, WIDTH), nn.Embedding(64, WIDTH)
        self.q, self.k, self.v = (nn.Linear(WIDTH, WIDTH) for _ in range(3))
        self.norm = nn.LayerNorm(WIDTH)
        self.head = nn.Linear(WIDTH, 4)

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        rows, length = input_ids.shape
        places = torch.arange(length, device=input_ids.device).unsqueeze(0).expand(rows, -1)
        x = self.norm(self.embed(input_ids) + self.places(places))
        far = (1.0 - attention_mask[:, None, None, :].to(x.dtype)) * -10000.0
        q, k, v = (p(x).view(rows, length, 4, WIDTH // 4).transpose(1, 2) for p in (self.q, self.k, self.v))
        weights = torch.softmax(q @ k.transpose(-1, -2) / 2.0 + far, -1)
        mixed = (weights @ v).transpose(1, 2).contiguous().view(rows, length, WIDTH)
        return self.head(torch.tanh(mixed[:, 0]))


class Causal(nn.Module):
    """Scaled dot product attention as one call, causal."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.places = nn.Embedding(WORDS, WIDTH), nn.Parameter(torch.randn(64, WIDTH))
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WORDS)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        rows, length = ids.shape
        x = self.embed(ids) + self.places[:length]
        q, k, v = (t.view(rows, length, 2, 8).transpose(1, 2) for t in self.qkv(x).split(WIDTH, 2))
        y = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.out(y.transpose(1, 2).reshape(rows, length, WIDTH))


class Patches(nn.Module):
    """A vision transformer: patches by a convolution, a token of its own for the class."""

    def __init__(self) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, WIDTH, 4, stride=4)
        self.token, self.places = nn.Parameter(torch.randn(1, 1, WIDTH)), nn.Parameter(torch.randn(1, 17, WIDTH))
        self.layer = nn.TransformerEncoderLayer(WIDTH, 2, 24, batch_first=True, norm_first=True, activation="gelu")
        self.head = nn.Linear(WIDTH, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.patch(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1) + self.places
        return self.head(self.layer(x)[:, 0])


class Recurrent(nn.Module):
    def __init__(self, kind: type[nn.Module]) -> None:
        super().__init__()
        self.embed = nn.Embedding(WORDS, 8)
        self.cells = kind(8, 8, batch_first=True, bidirectional=True)
        self.head = nn.Linear(16, 3)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        outputs, _ = self.cells(self.embed(ids))
        return self.head(outputs)


class PackedRecurrent(Recurrent):
    def forward(self, ids: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        packed = nn.utils.rnn.pack_padded_sequence(self.embed(ids), lengths, batch_first=True)
        packed, _ = self.cells(packed)
        outputs, _ = nn.utils.rnn.pad_packed_sequence(packed, batch_first=True)
        return self.head(outputs)


class Sound(nn.Module):
    """Convolutions over time, dilated, with gates, and a pooling by attention."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv1d(5, 16, 3, padding=1)
        self.dilated = nn.Conv1d(8, 16, 3, padding=2, dilation=2)
        self.norm, self.weigh, self.head = nn.LayerNorm(8), nn.Linear(8, 1), nn.Linear(8, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = nn.functional.glu(self.first(x), 1)
        x = self.norm((x + nn.functional.glu(self.dilated(x), 1)).transpose(1, 2))
        return self.head((torch.softmax(self.weigh(x), 1) * x).sum(1))


class Points(nn.Module):
    """Points of one object each row: a maximum over its own points."""

    def __init__(self) -> None:
        super().__init__()
        self.each, self.head = nn.Conv1d(3, 16, 1), nn.Linear(16, 4)

    def forward(self, points: torch.Tensor) -> torch.Tensor:
        return self.head(torch.relu(self.each(points)).amax(2))


class Upscale(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3, padding=1, padding_mode="reflect")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.pixel_shuffle(self.conv(x), 2).clamp(0, 1)


class TimeFirst(nn.Module):
    """A tagger of one text: its first dimension is time."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.conv, self.head = nn.Embedding(WORDS, 8), nn.Conv1d(8, 8, 3, padding=1), nn.Linear(8, 4)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.head(torch.relu(self.conv(self.embed(ids).t().unsqueeze(0))).squeeze(0).t())


class OneCloud(nn.Module):
    """Points of one object, its first dimension: each gets the maximum over all of them beside its own."""

    def __init__(self) -> None:
        super().__init__()
        self.each, self.head = nn.Linear(3, 8), nn.Linear(16, 4)

    def forward(self, points: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.each(points))
        return self.head(torch.cat([x, x.amax(0, keepdim=True).expand(x.shape[0], -1)], 1))


class Squeezed(nn.Module):
    """`squeeze()` of everything: of one row alone it makes a scalar."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(4, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(x).squeeze()


class Averaged(nn.Module):
    """Divides by the number of rows, as a loss would."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(4, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(x) / x.shape[0]


class Padded(nn.Module):
    """Cut to the longest of the batch, and its mean taken over what is padding too."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(WORDS, 8), nn.Linear(8, 2)

    def forward(self, ids: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        x = self.embed(ids)[:, : lengths.max()]
        return self.head(x.mean(1))


Free = dict[str, tuple[str, ...]]


def floats(*shape: int) -> torch.Tensor:
    return torch.randn(*shape)


def ids(*shape: int) -> torch.Tensor:
    return torch.randint(1, WORDS, shape)


PADDING = torch.arange(7) >= torch.tensor([[7], [4]])
MASK = (~PADDING).long()
LENGTHS = torch.tensor([7, 4])

OURS: dict[str, tuple[Callable[[], nn.Module], dict[str, torch.Tensor], Free]] = {
    "classifier": (Classifier, {"x": floats(2, 12)}, {"x": ("rows",)}),
    "convolutions": (Convolutions, {"x": floats(2, 3, 12, 12)}, {"x": ("rows",)}),
    "unet": (UNet, {"x": floats(2, 3, 8, 8)}, {"x": ("rows",)}),
    "encoder": (Encoder, {"ids": ids(2, 7)}, {"ids": ("rows", "length")}),
    "encoder-mask": (
        MaskedEncoder,
        {"ids": ids(2, 7), "is_padding": PADDING},
        {"ids": ("rows", "length"), "is_padding": ("rows", "length")},
    ),
    "attention-mask": (
        Attention,
        {"input_ids": ids(2, 7), "attention_mask": MASK},
        {"input_ids": ("rows", "length"), "attention_mask": ("rows", "length")},
    ),
    "causal": (Causal, {"ids": ids(2, 7)}, {"ids": ("rows", "length")}),
    "patches": (Patches, {"x": floats(2, 3, 16, 16)}, {"x": ("rows",)}),
    "lstm": (lambda: Recurrent(nn.LSTM), {"ids": ids(2, 7)}, {"ids": ("rows", "length")}),
    "gru": (lambda: Recurrent(nn.GRU), {"ids": ids(2, 7)}, {"ids": ("rows", "length")}),
    "lstm-lengths": (
        lambda: PackedRecurrent(nn.LSTM),
        {"ids": ids(2, 7), "lengths": LENGTHS},
        {"ids": ("rows", "length"), "lengths": ("rows",)},
    ),
    "gru-lengths": (
        lambda: PackedRecurrent(nn.GRU),
        {"ids": ids(2, 7), "lengths": LENGTHS},
        {"ids": ("rows", "length"), "lengths": ("rows",)},
    ),
    "sound": (Sound, {"x": floats(2, 5, 20)}, {"x": ("rows", "", "time")}),
    "points": (Points, {"points": floats(2, 3, 9)}, {"points": ("rows", "", "points")}),
    "upscale": (Upscale, {"x": floats(2, 1, 6, 7)}, {"x": ("rows", "", "height", "width")}),
    "time-first": (TimeFirst, {"ids": ids(6)}, {"ids": ("time",)}),
    "encoder-time-first": (lambda: Encoder(rows_first=False), {"ids": ids(7, 2)}, {"ids": ("time", "rows")}),
    "one-cloud": (OneCloud, {"points": floats(9, 3)}, {"points": ("points",)}),
    "squeezed": (Squeezed, {"x": floats(3, 4)}, {"x": ("rows",)}),
    "averaged": (Averaged, {"x": floats(3, 4)}, {"x": ("rows",)}),
    "padded": (
        Padded,
        {"ids": ids(2, 7), "lengths": LENGTHS},
        {"ids": ("rows", "length"), "lengths": ("rows",)},
    ),
}


class Plain(nn.Module):
    """A Hugging Face model that takes and gives tensors only."""

    def __init__(self, model: nn.Module, names: tuple[str, ...]) -> None:
        super().__init__()
        self.model, self.names = model, names

    def forward(self, *values: torch.Tensor) -> torch.Tensor:
        found = self.model(**dict(zip(self.names, values, strict=True)), return_dict=False)
        return found[0]


def hugging_face() -> Iterator[tuple[str, nn.Module, dict[str, torch.Tensor], Free]]:
    """Real architectures of the library, of a few thousand random weights."""
    import transformers as hf

    small = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24}
    text = {**small, "vocab_size": WORDS, "max_position_embeddings": 40}
    masked = {"input_ids": ids(2, 7), "attention_mask": MASK}
    free: Free = {"input_ids": ("rows", "length"), "attention_mask": ("rows", "length")}
    image = {"pixel_values": floats(2, 3, 16, 16)}
    yield "bert", hf.BertForSequenceClassification(hf.BertConfig(**text)), masked, free
    yield "roberta", hf.RobertaForTokenClassification(hf.RobertaConfig(**text)), masked, free
    yield (
        "distilbert",
        hf.DistilBertForSequenceClassification(
            hf.DistilBertConfig(
                vocab_size=WORDS, dim=16, n_layers=1, n_heads=2, hidden_dim=24, max_position_embeddings=40
            )
        ),
        masked,
        free,
    )
    yield (
        "gpt2",
        hf.GPT2LMHeadModel(
            hf.GPT2Config(vocab_size=WORDS, n_embd=16, n_layer=1, n_head=2, n_positions=40, use_cache=False)
        ),
        masked,
        free,
    )
    yield "llama", hf.LlamaForCausalLM(hf.LlamaConfig(**text, num_key_value_heads=1, use_cache=False)), masked, free
    yield (
        "t5-encoder",
        hf.T5EncoderModel(hf.T5Config(vocab_size=WORDS, d_model=16, d_kv=8, d_ff=24, num_layers=1, num_heads=2)),
        masked,
        free,
    )
    yield (
        "vit",
        hf.ViTForImageClassification(hf.ViTConfig(**small, image_size=16, patch_size=8)),
        image,
        {"pixel_values": ("rows",)},
    )
    yield (
        "clip-text",
        hf.CLIPTextModelWithProjection(
            hf.CLIPTextConfig(**text, projection_dim=8, bos_token_id=0, eos_token_id=WORDS - 1)
        ),
        masked,
        free,
    )


def export(model: nn.Module, values: dict[str, torch.Tensor], free: Free, exporter: Exporter) -> onnx.ModelProto:
    """Export in the way that PyTorch's documentation shows, without what only helps debugging."""
    model.eval()
    buffer = io.BytesIO()
    names = list(values)
    if exporter == "script":
        axes = {name: {i: dim for i, dim in enumerate(dims) if dim} for name, dims in free.items()}
        torch.onnx.export(
            model,
            tuple(values.values()),
            buffer,
            dynamo=False,
            input_names=names,
            output_names=["output"] if not isinstance(model, Classifier) else ["scores", "label"],
            dynamic_axes=axes | {"output": {0: "rows"}} if not isinstance(model, Classifier) else axes,
        )
    else:
        dims = {dim: torch.export.Dim.DYNAMIC for dims in free.values() for dim in dims if dim}
        shapes = tuple({i: dims[dim] for i, dim in enumerate(free[name]) if dim} for name in names)
        if isinstance(model, Plain):
            shapes = (shapes,)  # its arguments are one tuple
        torch.onnx.export(
            model,
            tuple(values.values()),
            buffer,
            dynamo=True,
            input_names=names,
            dynamic_shapes=shapes,
            external_data=False,
            verbose=False,
        )
    made = onnx.load_from_string(buffer.getvalue())
    strip(made)
    if exporter == "script":
        shorten(made.graph)
    return made


def strip(model: onnx.ModelProto) -> None:
    """Remove texts for debuggers: the second exporter puts the stack of each line of Python into the file."""
    del model.graph.metadata_props[:]
    graphs = [model.graph]
    while graphs:
        graph = graphs.pop()
        graph.doc_string = ""
        del graph.value_info[:]
        for value in (*graph.input, *graph.output, *graph.initializer):
            value.doc_string = ""
            del value.metadata_props[:]
        for node in graph.node:
            node.doc_string = ""
            del node.metadata_props[:]
            graphs += [attribute.g for attribute in node.attribute if attribute.type == onnx.AttributeProto.GRAPH]
    for function in model.functions:
        function.doc_string = ""
        del function.metadata_props[:], function.value_info[:]
        for node in function.node:
            node.doc_string = ""
            del node.metadata_props[:]


def shorten(graph: onnx.GraphProto) -> None:
    """
    Number what is inside: the first exporter puts the path of the Python module into each name, most of a small file.

    Names of inputs, outputs and weights stay. Only for graphs without graphs inside.
    """
    if any(attribute.type == onnx.AttributeProto.GRAPH for node in graph.node for attribute in node.attribute):
        return
    kept = {value.name for value in (*graph.input, *graph.output, *graph.initializer)} | {""}
    names = {name: name for name in kept}
    for number, node in enumerate(graph.node):
        node.name = f"{node.op_type}_{number}"
        for index, name in enumerate(node.output):
            names.setdefault(name, f"{number}.{index}")
    for node in graph.node:
        for values in (node.input, node.output):
            values[:] = [names[name] for name in values]


def main(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    warnings.simplefilter("ignore")
    models = [(name, lambda make=make: make(), values, free) for name, (make, values, free) in OURS.items()]
    models += [
        (f"hf-{name}", lambda model=model, names=tuple(values): Plain(model, names), values, free)
        for name, model, values, free in hugging_face()
    ]
    torch.backends.mha.set_fastpath_enabled(False)  # its one operator has no form in ONNX
    for name, make, values, free in models:
        for exporter in ("script", "dynamo"):
            torch.manual_seed(7)
            with contextlib.redirect_stdout(io.StringIO()):
                try:
                    made = export(make(), values, free, exporter)
                except Exception as error:
                    print(f"torch-{name}-{exporter}: {type(error).__name__}: {str(error)[:300]}", file=sys.stderr)
                    continue
            onnx.save(made, folder / f"torch-{name}-{exporter}.onnx")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
