"""Train models/pytorch.onnx: a small neural network that answers with one score for each class."""

import torch
from common import SEED, load, report, save
from torch import nn

torch.manual_seed(SEED)
torch.set_num_threads(1)


class Iris(nn.Module):
    """Four measurements in, three scores out. Knows the mean and spread of its training data."""

    def __init__(self, mean: torch.Tensor, spread: torch.Tensor) -> None:
        super().__init__()
        self.register_buffer("mean", mean)
        self.register_buffer("spread", spread)
        self.layers = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 3))

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return self.layers((features - self.mean) / self.spread)  # (rows, 3)


features, _, classes, _ = (torch.from_numpy(part) for part in load())
network = Iris(features.mean(dim=0), features.std(dim=0))
optimizer = torch.optim.Adam(network.parameters(), lr=0.01, weight_decay=1e-3)
for _ in range(300):
    optimizer.zero_grad()
    nn.functional.cross_entropy(network(features), classes).backward()
    optimizer.step()

model = torch.onnx.export(
    network.eval(),
    (features[:2],),
    input_names=["input"],
    output_names=["scores"],
    dynamic_shapes={"features": {0: torch.export.Dim("rows")}},  # any number of rows
    opset_version=18,
    dynamo=True,
).model_proto  # the weights are inside: one file, nothing beside it
graph = model.graph
for part in (model, graph, *graph.node, *graph.input, *graph.output, *graph.value_info):
    part.ClearField("metadata_props")  # the exporter notes the path and lines of this script there
report(save(model, "pytorch"), lambda outputs: outputs["scores"].argmax(axis=1))
