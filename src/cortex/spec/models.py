"""
The blocks of a cortex.yaml as frozen models: every field with its default and its rule.

The models are what travels: `model_dump(mode="json", exclude_unset=True)` is validated again by the control plane,
which so knows what the user wrote.
Fields keep the user's own spelling, which is what `cortex get -v` shows; properties that end in a unit are what code
computes with. Explicit `null` means the default everywhere. Whether models, handlers and secrets exist is not looked
at here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    JsonValue,
    PlainSerializer,
    PlainValidator,
    Tag,
    ValidationError,
    ValidationInfo,
    WithJsonSchema,
    field_validator,
    model_validator,
)
from pydantic_core import InitErrorDetails

from cortex.ids import DEFAULT_DEPLOYMENT, DeploymentName
from cortex.spec import rules
from cortex.spec.locations import ModelFormat, infer_format, masked_model, sample_path
from cortex.spec.problems import quoted
from cortex.spec.quantities import (
    DURATION_PATTERN,
    LONGEST_WATCH_S,
    MIN_MEMORY_BYTES,
    QUANTITY_PATTERN,
    Cpu,
    Duration,
    Memory,
    Size,
    WatchTime,
)

ModelType = Literal["classification", "regression"]

_COUNT = {"type": "integer", "minimum": 1, "maximum": rules.MAX_COUNT}
_TEXT = {"type": "string", "minLength": 1, "maxLength": rules.MAX_TEXT_CHARACTERS}
_NAME = {"type": "string", "pattern": rules.NAME_PATTERN, "maxLength": rules.MAX_NAME_CHARACTERS}
_DEPLOYMENT = {**_NAME, "not": {"enum": list(rules.PROBE_NAMES)}}
_QUANTITY = {
    "type": ["string", "number"],
    "pattern": rf"^\+?(?=[0-9.]*[1-9])({QUANTITY_PATTERN})$",
    "exclusiveMinimum": 0,
}
_DURATION = {
    "type": ["string", "number"],
    "pattern": rf"^(?=.*[1-9])({DURATION_PATTERN})$",
    "exclusiveMinimum": 0,
}
_MODEL = {
    **_TEXT,
    "pattern": r"^((s3|gs|az|https)://[^/]+/+[^/].*|file://(localhost)?/.+|(?!~)(?![A-Za-z][A-Za-z0-9+.\-]*://).+)$",
}
_HANDLER = {**_TEXT, "pattern": r"^(?!/)(?!~)(?!(\./)*\.\./)[^\\]*[^/\\]\.py$"}
_ENV = {
    "type": "object",
    "propertyNames": {"pattern": rf"^(?!{rules.RESERVED_ENV_PREFIX})[A-Za-z_][A-Za-z0-9_]*$"},
    "additionalProperties": {
        "anyOf": [
            {"type": ["string", "number", "boolean", "null"]},
            {
                "type": "object",
                "required": ["secret"],
                "properties": {"secret": {"type": "string", "pattern": rules.SECRET_NAME_PATTERN}},
                "additionalProperties": False,
            },
        ]
    },
}


def _spelling(value: Cpu | Size | Duration) -> str:
    return value.text


_as_spelled = PlainSerializer(_spelling, return_type=str)

Name = Annotated[str, PlainValidator(rules.check_name), WithJsonSchema(_NAME)]
Text = Annotated[str, PlainValidator(rules.check_text), WithJsonSchema(_TEXT)]
Count = Annotated[int, PlainValidator(rules.check_at_least(1)), WithJsonSchema(_COUNT)]
CountOrZero = Annotated[int, PlainValidator(rules.check_at_least(0)), WithJsonSchema({**_COUNT, "minimum": 0})]
CpuField = Annotated[Cpu, PlainValidator(rules.check_parsed(Cpu)), _as_spelled, WithJsonSchema(_QUANTITY)]
PositiveField = Annotated[
    float, PlainValidator(rules.check_positive), WithJsonSchema({"type": "number", "exclusiveMinimum": 0})
]
MemoryField = Annotated[
    Memory,
    PlainValidator(rules.check_parsed(Memory)),
    _as_spelled,
    WithJsonSchema({**_QUANTITY, "minimum": MIN_MEMORY_BYTES}),
]
SizeField = Annotated[Size, PlainValidator(rules.check_parsed(Size)), _as_spelled, WithJsonSchema(_QUANTITY)]
DurationField = Annotated[
    Duration, PlainValidator(rules.check_parsed(Duration)), _as_spelled, WithJsonSchema(_DURATION)
]
WatchField = Annotated[
    WatchTime,
    PlainValidator(rules.check_parsed(WatchTime)),
    _as_spelled,
    WithJsonSchema(
        {"type": ["string", "number"], "pattern": f"^({DURATION_PATTERN})$", "minimum": 0, "maximum": LONGEST_WATCH_S}
    ),
]
ModelField = Annotated[str, PlainValidator(rules.check_model), WithJsonSchema(_MODEL)]
HandlerField = Annotated[str, PlainValidator(rules.check_handler), WithJsonSchema(_HANDLER)]
ModelFormatField = Annotated[
    ModelFormat,
    PlainValidator(rules.check_one_of("onnx", "tensorflow")),
    WithJsonSchema({"type": "string", "enum": ["onnx", "tensorflow"]}),
]
ModelTypeField = Annotated[
    ModelType,
    PlainValidator(rules.check_one_of("classification", "regression")),
    WithJsonSchema({"type": "string", "enum": ["classification", "regression"]}),
]
RetryField = Annotated[
    Literal["on", "off"],
    PlainValidator(rules.check_switch("on", "off")),
    WithJsonSchema({"enum": [*rules.ON_SPELLINGS, *rules.OFF_SPELLINGS]}),
]
BatchingField = Annotated[
    Literal["auto", "on", "off"],
    PlainValidator(rules.check_switch("auto", "on", "off")),
    WithJsonSchema({"enum": ["auto", *rules.ON_SPELLINGS, *rules.OFF_SPELLINGS]}),
]
SampleField = Annotated[JsonValue, PlainValidator(rules.check_json), WithJsonSchema({})]


class _Block(BaseModel):
    """One mapping of a cortex.yaml."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    @model_validator(mode="before")
    @classmethod
    def _nulls_are_defaults(cls, data: Any) -> Any:
        return rules.drop_nulls(data)


class SecretRef(_Block):
    """The value of an environment variable that is kept by `cortex secret set`."""

    secret: Annotated[str, PlainValidator(rules.check_secret_name)] = Field(description="Name of a secret.")


IS_SECRET, IS_TEXT = "|secret", "|text"
"""How pydantic marks the two kinds of env values in the places of errors; `explanation` drops the marks."""


def _env_kind(value: object) -> str:
    return IS_SECRET if isinstance(value, Mapping | SecretRef) else IS_TEXT


EnvName = Annotated[str, PlainValidator(rules.check_env_name)]
EnvValue = Annotated[
    Annotated[str, PlainValidator(rules.check_env_value), Tag(IS_TEXT)] | Annotated[SecretRef, Tag(IS_SECRET)],
    Discriminator(_env_kind),
]
EnvField = Annotated[Mapping[EnvName, EnvValue], BeforeValidator(rules.drop_nulls), WithJsonSchema(_ENV)]


class TrackerSpec(_Block):
    """What is counted of the predictions."""

    key: Text | None = Field(default=None, description="Key of the response to track; required if it is a JSON object.")
    model_type: ModelTypeField = Field(
        description="classification counts classes; regression keeps minimum, maximum and mean."
    )


class ComputeSpec(_Block):
    """What each replica gets, and how many there are: min_replicas ≤ init_replicas ≤ max_replicas."""

    min_replicas: CountOrZero = Field(
        default=1, description="Fewest replicas; 0: the api sleeps while nobody asks, and the first request wakes it."
    )
    max_replicas: Count = Field(default=100, validate_default=True, description="Most replicas.")
    init_replicas: Count = Field(
        default_factory=lambda data: data.get("min_replicas", 1),
        description="Replicas when the api is first created; min_replicas unless given.",
    )
    target_cpu_utilization: Count = Field(
        default=80,
        description="How far a replica's cpu request, and what it can do at once, shall be used, in per cent.",
    )
    target_in_flight: PositiveField | None = Field(
        default=None,
        description="Mean requests in flight that a replica shall have, such as 4 or 0.5; used instead of "
        "target_cpu_utilization.",
    )
    downscale_window: DurationField | None = Field(
        default=None,
        description="How long replicas stay that the load has just needed, such as 30s; CORTEX_DOWNSCALE_WINDOW unless "
        "given.",
    )
    idle_timeout: DurationField = Field(
        default=Duration.parse("5m"),
        description="With min_replicas: 0, how long without a prediction until the api sleeps, such as 30s.",
    )
    cpu: CpuField = Field(default=Cpu.parse("200m"), description="CPU request of a replica, such as 200m, 0.5 or 2.")
    gpu: CountOrZero = Field(default=0, description="GPUs that a replica gets for itself.")
    mem: MemoryField | None = Field(
        default=None, description="Memory request of a replica, such as 512Mi; at least 1Mi."
    )
    concurrency: Count | None = Field(
        default=None, description="Requests inside the handler at once, per replica: 1 for sync handlers, 64 for async."
    )

    @property
    def cpu_millis(self) -> int:
        return self.cpu.millis

    @property
    def mem_bytes(self) -> int | None:
        return None if self.mem is None else self.mem.bytes

    @property
    def downscale_window_s(self) -> float | None:
        return None if self.downscale_window is None else self.downscale_window.seconds

    @property
    def idle_timeout_s(self) -> float:
        return self.idle_timeout.seconds

    @field_validator("gpu")
    @classmethod
    def _what_has_a_gpu_is_awake(cls, gpu: int, info: ValidationInfo) -> int:
        if gpu and info.data.get("min_replicas", 1) == 0:
            raise rules.refusal(
                "sleep-with-gpu",
                "an api with a GPU cannot sleep: whoever wakes it may find the GPU taken",
                hint="set min_replicas to 1 or more",
            )
        return gpu

    @field_validator("max_replicas")
    @classmethod
    def _max_is_not_below_min(cls, high: int, info: ValidationInfo) -> int:
        low = info.data.get("min_replicas", 1)
        if low > high:
            raise rules.refusal(
                "replica-bounds",
                f"max_replicas {high} is less than min_replicas {low}",
                hint=f"raise max_replicas to {low} or more",
                blame="min_replicas",
                message_by_default=f"min_replicas {low} is more than max_replicas, which is {high} unless given",
                hint_by_default=f"add max_replicas: {low}",
            )
        return high

    @field_validator("init_replicas")
    @classmethod
    def _init_is_between(cls, init: int, info: ValidationInfo) -> int:
        low, high = info.data.get("min_replicas", 1), info.data.get("max_replicas", rules.MAX_COUNT)
        if init < low:
            message = f"init_replicas {init} is less than min_replicas {low}"
            raise rules.refusal("replica-bounds", message, hint="leave init_replicas out to begin with min_replicas")
        if init > high:
            message = f"init_replicas {init} is more than max_replicas {high}"
            raise rules.refusal("replica-bounds", message, hint=f"raise max_replicas to {init} or more")
        return init


class RolloutSpec(_Block):
    """How a new version takes over from the one before."""

    watch: WatchField = Field(
        default=WatchTime.parse("2m"),
        description="For how long a new version is compared with the one before once it is live, and goes back if far "
        "more of its requests fail; so long a replica of the one before stays ready. 0: not at all.",
    )


class ApiSpec(_Block):
    """One `kind: api`."""

    name: Name = Field(description="Name of the api: lower-case letters, digits and dashes, at most 42 characters.")
    model: ModelField = Field(
        description="The model: a path relative to this file, or file://, s3://, gs://, az://, https://."
    )
    model_format: ModelFormatField | None = Field(
        default=None, description="Format of the model; told by its name, or by what is in it, unless given."
    )
    request_handler: HandlerField | None = Field(
        default=None,
        description="Python file with pre_inference and post_inference, relative to the folder of this file.",
    )
    tf_signature_key: Text | None = Field(
        default=None, description="Signature of a TensorFlow model to use, if it has several."
    )
    tracker: TrackerSpec | None = Field(default=None, description="What is counted of the predictions.")
    compute: ComputeSpec = Field(default=ComputeSpec(), description="What each replica gets, and how many there are.")
    sample: SampleField = Field(
        default=None,
        description="A request body that works, or the path of a file with one: new versions have to answer it.",
    )
    retry: RetryField = Field(default="on", description="off: a request is never delivered twice.")
    env: EnvField = Field(
        default={}, description="Environment of the handler: NAME: value, or NAME: {secret: <secret name>}."
    )
    timeout: DurationField = Field(
        default=Duration.parse("10m"), description="Longest time for a request, such as 30s or 10m."
    )
    max_body: SizeField = Field(default=Size.parse("100Mi"), description="Largest request body, such as 100Mi.")
    batching: BatchingField = Field(
        default="auto",
        description="auto: what queued up meanwhile goes through the model together, if its graph proves that no row "
        "depends on others. on: on your word, also where that cannot be proved.",
    )

    rollout: RolloutSpec = Field(default=RolloutSpec(), description="How a new version takes over.")

    @property
    def masked_model(self) -> str:
        """`model` as it may be shown."""
        return masked_model(self.model)

    @property
    def sample_path(self) -> str | None:
        """The path of the file that holds the sample, if `sample` is a path."""
        return sample_path(self.sample)

    @property
    def timeout_s(self) -> float:
        return self.timeout.seconds

    @property
    def max_body_bytes(self) -> int:
        return self.max_body.bytes

    @field_validator("tf_signature_key")
    @classmethod
    def _signature_key_is_for_tensorflow(cls, key: str | None, info: ValidationInfo) -> str | None:
        given, model = info.data.get("model_format"), info.data.get("model", "")
        if key is not None and (given or infer_format(model)) == "onnx":
            because = "model_format says so" if given else "the name of the model ends in .onnx"
            message = f"tf_signature_key is for TensorFlow models, and this one is ONNX: {because}"
            raise rules.refusal("signature-key-with-onnx", message, hint="delete tf_signature_key")
        return key


class DeploymentSpec(_Block):
    """One `kind: deployment`: the name of a group of apis."""

    name: Annotated[DeploymentName, PlainValidator(rules.check_deployment_name), WithJsonSchema(_DEPLOYMENT)] = Field(
        description="Name of the group of apis: lower-case letters, digits and dashes, at most 42 characters."
    )


class ProjectSpec(_Block):
    """A whole cortex.yaml."""

    deployment: Annotated[DeploymentName, PlainValidator(rules.check_deployment_name)] = Field(
        default=DEFAULT_DEPLOYMENT, description="Name of the deployment."
    )
    apis: tuple[ApiSpec, ...] = Field(default=(), description="Its apis, in the order of the file.")

    @model_validator(mode="after")
    def _names_are_unique(self) -> Self:
        first = {api.name: number for number, api in reversed(list(enumerate(self.apis)))}
        errors = [
            InitErrorDetails(
                type=rules.refusal(
                    "duplicate-name", f"two apis are named {quoted(api.name)}", hint="rename one of them"
                ),
                loc=("apis", number, "name"),
                input=api.name,
            )
            for number, api in enumerate(self.apis)
            if first[api.name] != number
        ]
        in_default = self.deployment == DEFAULT_DEPLOYMENT
        for number, api in enumerate(self.apis):
            reserved = rules.reserved_api_name(api.name, in_default=in_default)
            if reserved is not None:
                errors.append(InitErrorDetails(type=reserved, loc=("apis", number, "name"), input=api.name))
        if errors:
            raise ValidationError.from_exception_data("ProjectSpec", errors)
        return self


RESOURCES: Mapping[str, type[BaseModel]] = {"api": ApiSpec, "deployment": DeploymentSpec}
"""The model of each `kind`."""
BLOCKS: Mapping[str, type[BaseModel]] = {"compute": ComputeSpec, "tracker": TrackerSpec, "rollout": RolloutSpec}
"""The model of each block inside an api, by its field."""
KEPT_AS_WRITTEN = frozenset(
    [
        ("compute", "cpu"),
        ("compute", "mem"),
        ("compute", "idle_timeout"),
        ("compute", "downscale_window"),
        ("timeout",),
        ("max_body",),
        ("rollout", "watch"),
    ]
)
"""
Fields whose value is wanted as it is spelled: `129e6`, not 129000000.0. So are the values of `env`.
"""
FLAT_FORM: Mapping[str, str] = {
    **dict.fromkeys(("key", "model_type"), "tracker"),
    **dict.fromkeys(
        ("min_replicas", "max_replicas", "init_replicas", "target_cpu_utilization", "cpu", "gpu", "mem"), "compute"
    ),
}
"""
Fields that may stand beside `name`, with the block that they are read into: those of the reference page of old, which
people copy without its indentation. Later ones have one place only.
"""
