"""
Train models/sklearn.onnx: logistic regression on standardised features.

It is trained on the label texts, so the model answers with them and nobody has to know the class numbers.
"""

import numpy as np
from common import LABELS, load, report, save
from skl2onnx import convert_sklearn
from skl2onnx.common.data_types import FloatTensorType
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

train_features, _, train_classes, _ = load()
classifier = make_pipeline(StandardScaler(), LogisticRegression())
classifier.fit(train_features, np.array(LABELS)[train_classes])

model = convert_sklearn(
    classifier,
    name="iris",
    initial_types=[("input", FloatTensorType([None, 4]))],  # any number of rows
    target_opset=17,
    options={"zipmap": False},  # probabilities as one array (rows, 3) rather than a list of maps
)
del model.opset_import[2:]  # the converter names one operator set twice
report(save(model, "sklearn"), lambda outputs: [LABELS.index(label) for label in outputs["label"]])
