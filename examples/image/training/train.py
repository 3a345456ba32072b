"""
Train ../models/shapes.onnx: a small convolutional network that tells five shapes apart.

Draws its own training pictures (`render.py`), tests on others, and prints the signature of the file that it wrote and
how often it is right, as onnxruntime sees it.
"""

import io
import random
from itertools import pairwise
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch
from PIL import Image
from render import LABELS, jpeg, picture
from torch import nn

SEED = 7
SIDE = 64
TRAINING, HELD_OUT = 12_000, 2_000
EPOCHS = 12
BATCH = 64
MODEL = Path(__file__).resolve().parent.parent / "models" / "shapes.onnx"


def pictures(count: int, seed: int, size: tuple[int, int] = (SIDE, SIDE)) -> tuple[np.ndarray, np.ndarray]:
    """
    Return pictures and their classes, all classes equally often.

    Pictures have been JPEGs, as those of callers are: float32 of shape (count, 3, SIDE, SIDE), from 0 to 1.
    """
    chance = random.Random(seed)
    images = np.empty((count, 3, SIDE, SIDE), np.float32)
    classes = np.arange(count) % len(LABELS)
    for number in range(count):
        image = Image.open(io.BytesIO(jpeg(picture(LABELS[classes[number]], chance, size), chance)))
        images[number] = np.asarray(image.resize((SIDE, SIDE)), np.float32).transpose(2, 0, 1) / 255
    return images, classes


class Shapes(nn.Module):
    """Pictures in, one score a class out. Knows the mean and spread of its training data."""

    def __init__(self, mean: torch.Tensor, spread: torch.Tensor) -> None:
        super().__init__()
        self.register_buffer("mean", mean)
        self.register_buffer("spread", spread)
        widths = (3, 16, 32, 48, 64)
        blocks = [self._block(before, after) for before, after in pairwise(widths)]
        self.layers = nn.Sequential(*blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(widths[-1], len(LABELS)))

    @staticmethod
    def _block(before: int, after: int) -> nn.Module:
        return nn.Sequential(
            nn.Conv2d(before, after, 3, padding=1, bias=False), nn.BatchNorm2d(after), nn.ReLU(), nn.MaxPool2d(2)
        )

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.layers((images - self.mean) / self.spread)  # (rows, classes)


def train() -> nn.Module:
    torch.manual_seed(SEED)
    torch.set_num_threads(1)
    images, classes = (torch.from_numpy(part) for part in pictures(TRAINING, SEED))
    axes = (0, 2, 3)
    network = Shapes(images.mean(axes, keepdim=True)[0], images.std(axes, keepdim=True)[0])
    optimizer = torch.optim.AdamW(network.parameters(), lr=3e-3, weight_decay=1e-2)
    batches = TRAINING // BATCH
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=3e-3, total_steps=EPOCHS * batches)
    for epoch in range(EPOCHS):
        order = torch.randperm(TRAINING)[: batches * BATCH].reshape(batches, BATCH)
        losses = []
        for rows in order:
            batch = images[rows]
            if torch.rand(()) < 0.5:
                batch = batch.flip(3)
            loss = nn.functional.cross_entropy(network(batch), classes[rows], label_smoothing=0.05)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            losses.append(loss.item())
        print(f"epoch {epoch + 1} of {EPOCHS}: loss {np.mean(losses):.3f}", flush=True)
    return network.eval()


def export(network: nn.Module) -> None:
    """Write the network with a softmax behind it, as one file."""
    model = torch.onnx.export(
        nn.Sequential(network, nn.Softmax(dim=1)).eval(),
        (torch.zeros(2, 3, SIDE, SIDE),),
        input_names=["image"],
        output_names=["probabilities"],
        dynamic_shapes={"input": {0: torch.export.Dim("rows")}},  # any number of pictures
        opset_version=18,
        dynamo=True,
    ).model_proto
    graph = model.graph
    for part in (model, graph, *graph.node, *graph.input, *graph.output, *graph.value_info):
        part.ClearField("metadata_props")  # the exporter notes the path and lines of this script there
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, MODEL)


def report() -> None:
    session = onnxruntime.InferenceSession(MODEL, providers=["CPUExecutionProvider"])
    print(f"{MODEL.name}: {MODEL.stat().st_size} bytes")
    for kind, values in (("input", session.get_inputs()), ("output", session.get_outputs())):
        for value in values:
            print(f"  {kind} {value.name}: {value.type} {value.shape}")
    for name, size, seed in (("64 x 64", (SIDE, SIDE), SEED + 1), ("256 x 256", (256, 256), SEED + 2)):
        images, classes = pictures(HELD_OUT, seed, size)
        found = np.concatenate([session.run(None, {"image": part})[0] for part in np.array_split(images, 20)])
        right = int(np.sum(found.argmax(axis=1) == classes))
        print(f"  right on {right} of {HELD_OUT} held-out pictures of {name}")


if __name__ == "__main__":
    export(train())
    report()
