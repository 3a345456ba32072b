"""Train models/xgboost.onnx: a few boosted trees that answer with the class number and the probabilities."""

from common import SEED, load, report, save
from onnxmltools import convert_xgboost
from onnxmltools.convert.common.data_types import FloatTensorType
from xgboost import XGBClassifier

train_features, _, train_classes, _ = load()
classifier = XGBClassifier(n_estimators=20, max_depth=3, learning_rate=0.3, n_jobs=1, random_state=SEED)
classifier.fit(train_features, train_classes)

model = convert_xgboost(
    classifier,
    name="iris",
    initial_types=[("input", FloatTensorType([None, 4]))],  # any number of rows
    target_opset=15,  # the newest that this converter writes
)
report(save(model, "xgboost"), lambda outputs: outputs["label"])
