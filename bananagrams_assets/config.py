"""The profile: every setting of a build and of a training run, as one typed and validated model.

A setting's unit is in its name (`_px`, `_s`) or in its description; its range is in its constraint.
`profiles` reads a profile from files, the environment and the command line.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from .errors import BananagramsError

Fraction = Annotated[float, Field(ge=0, le=1)]
BelowOne = Annotated[float, Field(ge=0, lt=1)]
Positive = Annotated[float, Field(gt=0)]
Count = Annotated[int, Field(ge=1)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]
Name = Annotated[str, Field(min_length=1)]
HttpUrl = Annotated[str, Field(pattern=r"^https?://")]


class ConfigError(BananagramsError, ValueError):
    """An invalid profile; the message names each key, the error and the allowed values."""


RENAMED_SETTINGS = {"shards.verdicts": "shards.reviews"}
"""Old path of a setting → its new path. Old paths are refused with a message that names the new one."""


class Section(BaseModel):
    """A group of settings: immutable, type-checked, without unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    operational: ClassVar[frozenset[str]] = frozenset()
    """Settings that never change a result, only how it is computed; `digest` excludes them."""

    def digest(self) -> str:
        """Return 16 hex digits over the settings of this section that can change a result."""
        content = self.model_dump(mode="json", exclude=set(self.operational))
        return digest_of(content)


def digest_of(content: Any) -> str:
    """Return the first 16 hex digits of SHA-256 over the canonical JSON of `content`."""
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def flatten(content: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield each leaf of nested settings as (dotted path, value), in order; an empty section is a leaf."""
    for key, value in content.items():
        path = f"{prefix}{key}"
        if isinstance(value, Mapping) and value:
            yield from flatten(value, path + ".")
        else:
            yield path, value


class SampleSettings(Section):
    """The embedded sample, used for the manifest `sample:`."""

    pairs: Count = Field(480, description="number of pairs to make")
    side_px: int = Field(320, ge=128, le=2048, description="longest side of a made photo, in px")
    strength: float = Field(
        1.0,
        ge=0,
        le=2,
        description="how strongly the simulated editor re-synthesises the whole image; 0: geometry and size "
        "only, 1: as usual, 2: heavily",
    )
    seed: Seed = Field(0, description="seed of all random choices")


class OpenImagesSettings(Section):
    """Open Images, the source of the photos of pico-banana-400k."""

    csv: str | None = Field(
        None,
        min_length=1,
        description="path or URL of train-images-boxable-with-rotation.csv, which maps photo URLs to "
        "ImageID, author and licence; null: ImageIDs are not looked up",
    )
    folder: str | None = Field(
        None, min_length=1, description="folder of unpacked images, <ImageID>.jpg; null: no local images"
    )
    mirror_prefix: str = Field(
        "https://open-images-dataset.s3.amazonaws.com/train/",
        pattern=r"^https?://.+/$",
        description="URL prefix of the mirror; `<ImageID>.jpg` is appended",
    )


class SourceSettings(Section):
    """Sources of records and images."""

    manifests: tuple[str, ...] = Field(
        ("https://ml-site.cdn-apple.com/datasets/pico-banana-300k/nb/jsonl/sft.jsonl",),
        min_length=1,
        description="paths or http(s) URLs of JSON-lines manifests; `sample:` is the embedded sample",
    )
    cdn_prefix: str = Field(
        "https://ml-site.cdn-apple.com/datasets/pico-banana-300k/nb/",
        pattern=r"^https?://.+/$",
        description="URL prefix of edited images; a record's output_image is appended",
    )
    photos_from: tuple[Literal["local", "mirror", "original"], ...] = Field(
        ("local", "mirror", "original"),
        min_length=1,
        description="places to look for a photo, in this order: `local` files (the record's "
        "local_input_image, open_images.folder), the `mirror` of Open Images, the record's `original` URL",
    )
    open_images: OpenImagesSettings = OpenImagesSettings()
    kinds: tuple[Literal["sft", "preference", "multi-turn"], ...] = Field(
        (), description="kinds of records to include; empty: all"
    )
    edit_types: tuple[str, ...] = Field((), description="edit types to include; empty: all")
    categories: tuple[
        Literal["Object", "Photometric", "Scene", "Style", "Text", "Human", "Geometric", "unknown"], ...
    ] = Field((), description="categories of edit types to include; empty: all")
    scopes: tuple[Literal["local", "global", "geometric", "unknown"], ...] = Field(
        (), description="scopes of edit types to include; empty: all"
    )
    max_samples: Count | None = Field(
        None, description="largest number of records, chosen evenly over the manifest; null: all"
    )
    license: str = Field(
        "edits CC BY-NC-ND 4.0 (research only, derivatives not redistributed); sources CC BY 2.0",
        description="licence written into the metadata of every sample",
    )
    sample: SampleSettings = SampleSettings()

    @field_validator("photos_from")
    @classmethod
    def _no_place_twice(cls, places: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(places)) != len(places):
            raise ValueError(f"names a place twice: {', '.join(places)}")
        return places


class HostSettings(Section):
    """Request limits of one host and its subdomains, shared by all runs on this machine."""

    host: str = Field(pattern=r"^[a-z0-9][a-z0-9.-]*$", description="host name; its subdomains are included")
    in_flight: int = Field(2, ge=1, le=256, description="largest number of concurrent requests")
    per_second: Positive | None = Field(None, description="most requests started per second; null: no limit")


FLICKR = HostSettings(host="staticflickr.com", in_flight=2, per_second=2.0)
"""Flickr answers 429 to a single fast worker and has closed accounts of users who continued."""


class FetchSettings(Section):
    """Downloads of images, and limits of accepted files."""

    operational = frozenset(
        {
            "concurrency", "attempts", "timeout_s", "deadline_s", "backoff_s", "user_agent", "contact",
            "in_flight", "per_second", "hosts",
        }
    )  # fmt: skip

    concurrency: int = Field(16, ge=1, le=256, description="concurrent downloads of one run")
    attempts: int = Field(4, ge=1, le=20, description="attempts per image")
    timeout_s: Positive = Field(60.0, description="time limit of one attempt, in seconds")
    deadline_s: Positive = Field(
        300.0, description="time limit of one image from its first request on, delays included, in seconds"
    )
    backoff_s: Positive = Field(
        1.0, description="delay before the second attempt, in seconds; doubles per attempt, with jitter"
    )
    in_flight: int = Field(
        32, ge=1, le=256, description="concurrent requests per host, of all runs on this machine"
    )
    per_second: Positive | None = Field(
        None, description="requests per second and host, of all runs on this machine; null: no limit"
    )
    hosts: tuple[HostSettings, ...] = Field((FLICKR,), description="hosts with their own limits")
    user_agent: str = Field(
        "bananagrams/0.1 (dataset builder; research use)",
        min_length=1,
        pattern=r"^[ -~]+$",
        description="User-Agent header of all requests",
    )
    contact: str | None = Field(
        None,
        min_length=1,
        pattern=r"^[ -~]+$",
        description="URL or mail address for server operators, appended to user_agent; null: none",
    )
    honour_opt_out: bool = Field(
        True, description="reject images whose server opts out (X-Robots-Tag: noai, noindex and similar)"
    )
    max_bytes: int = Field(64_000_000, ge=1024, description="largest accepted file, in bytes")
    max_pixels: int = Field(100_000_000, ge=1024, description="largest accepted image, in pixels")
    largest_side_px: int | None = Field(
        None,
        ge=64,
        description="resize larger images to this longest side, in px, before storing; null: store the "
        "received bytes",
    )


class SplitSettings(Section):
    """One split."""

    ratio: float = Field(ge=0, le=1, description="share of the source photos")
    shards: int = Field(ge=1, le=100_000, description="number of shards")


class SplitsSettings(Section):
    """Share and number of shards per split. The source photo determines the split and shard of a record."""

    seed: Seed = Field(0, description="seed of the assignment of photos to splits")
    train: SplitSettings = SplitSettings(ratio=0.9, shards=232)
    dev: SplitSettings = SplitSettings(ratio=0.05, shards=13)
    test: SplitSettings = SplitSettings(ratio=0.05, shards=13)

    @model_validator(mode="after")
    def _ratios_sum_to_one(self) -> SplitsSettings:
        total = self.train.ratio + self.dev.ratio + self.test.ratio
        if abs(total - 1) > 1e-9:
            raise ValueError(f"train.ratio + dev.ratio + test.ratio is {total:g}; they must sum to 1")
        return self

    def by_name(self) -> dict[str, SplitSettings]:
        """Return the settings of each split by its name, in order."""
        return {"train": self.train, "dev": self.dev, "test": self.test}

    def shard_keys(self, split: str | None = None) -> list[str]:
        """Return the partition keys `<split>-<00000>` of one split, or of all if None, in order."""
        return [
            f"{name}-{index:05d}"
            for name, settings in self.by_name().items()
            if split in (None, name)
            for index in range(settings.shards)
        ]


class AlignSettings(Section):
    """Alignment of the edited image to the input photo: SIFT features, then tracked corners."""

    working_side_px: int = Field(512, ge=128, le=4096, description="longest side for tracking corners, in px")
    features: int = Field(
        1500, ge=100, le=100_000, description="largest number of SIFT features, if a first try with few fails"
    )
    ratio: float = Field(
        0.8, gt=0, lt=1, description="largest distance ratio between best and second-best match (Lowe)"
    )
    ransac_px: Positive = Field(
        1.5, description="largest reprojection error of an inlier, in px at the resolution of detection"
    )
    min_inliers: int = Field(12, ge=4, description="reject alignments with fewer tracked inlier corners")
    min_inlier_ratio: Fraction = Field(0.15, description="reject alignments with a smaller share of inliers")
    min_confidence: Fraction = Field(0.7, description="reject alignments with a lower confidence")
    min_overlap: Fraction = Field(
        0.3, description="reject alignments whose edited image covers a smaller share of the input"
    )
    max_scale: float = Field(
        4.0, gt=1, description="largest accepted scale, or its inverse, beyond that of the plain resize"
    )
    max_anisotropy: float = Field(1.6, gt=1, description="largest accepted ratio of the two axes' scales")


def _odd(value: int) -> int:
    if value % 2 == 0:
        raise ValueError("must be odd (a kernel has a centre)")
    return value


class MaskSettings(Section):
    """The difference mask of an aligned pair."""

    working_side_px: int | None = Field(
        512, ge=128, description="longest side at which the mask is computed, in px; null: the input's size"
    )
    blur_kernel_px: int = Field(
        3, ge=1, le=51, description="Gaussian kernel before differencing, in px, odd; 1: no blur"
    )
    threshold_low: Positive = Field(
        3.0, description="smallest colour difference of mask pixels, in CIE Lab dE (low hysteresis threshold)"
    )
    threshold_high: Positive = Field(
        15.0, description="smallest peak colour difference of a mask component, in dE (high threshold)"
    )
    noise_low: float = Field(6.0, ge=0, description="low threshold in multiples of the pair's noise")
    noise_high: float = Field(15.0, ge=0, description="high threshold in multiples of the pair's noise")
    open_px: int = Field(1, ge=1, le=51, description="opening kernel, in px, odd; 1: no opening")
    close_px: int = Field(9, ge=1, le=51, description="closing kernel, in px, odd; 1: no closing")
    smallest_component: Fraction = Field(0.0005, description="drop components below this share of the image")
    border_px: int = Field(
        4, ge=0, le=256, description="width of the ignored border of the overlap, in px at the working size"
    )
    global_area: Fraction = Field(0.85, description="share of the overlap above which a mask is global")

    _kernels_are_odd = field_validator("blur_kernel_px", "open_px", "close_px")(_odd)

    @model_validator(mode="after")
    def _low_under_high(self) -> MaskSettings:
        if self.threshold_low > self.threshold_high or self.noise_low > self.noise_high:
            raise ValueError(
                "threshold_low and noise_low must not exceed threshold_high and noise_high (hysteresis)"
            )
        return self


class ShardSettings(Section):
    """Contents of a dataset shard."""

    # The labels in these files are compared per shard, see stages/reviews.py.
    operational = frozenset({"reviews"})

    reviews: tuple[str, ...] = Field(
        (), description="review files of overlay pages, as paths or store:NAME; exclude samples labelled bad"
    )
    jpeg_quality: int = Field(95, ge=1, le=100, description="JPEG quality of a re-encoded input.jpg")
    largest_side_px: int | None = Field(
        None, ge=64, description="resize input.jpg to this longest side, in px; null: the input's size"
    )
    untouched: bool = Field(
        False, description="ship only received bytes; reject photos that need re-encoding"
    )


class OverlaySettings(Section):
    """Pages for reviewing masks by eye."""

    tile_px: int = Field(512, ge=64, le=1024, description="longest side of an image on a page, in px")
    max_samples: int = Field(240, ge=1, description="most samples drawn per shard, lowest confidence first")
    jpeg_quality: int = Field(85, ge=1, le=100, description="JPEG quality of the drawn images")


class FusionSettings(Section):
    """Cross-attention from image features to text tokens."""

    width: int = Field(256, ge=16, le=2048, description="channels of the fused features")
    heads: int = Field(8, ge=1, le=64, description="attention heads; must divide width")
    layers: int = Field(
        4, ge=1, le=24, description="total number of cross-attention layers, distributed over the strides"
    )
    strides: tuple[Literal[4, 8, 16, 32], ...] = Field(
        (32, 16), min_length=1, description="strides of the feature maps with cross-attention"
    )
    dropout: BelowOne = Field(0.0, description="dropout probability of the attention weights")

    @model_validator(mode="after")
    def _heads_divide_width(self) -> FusionSettings:
        if self.width % self.heads:
            raise ValueError(f"width {self.width} must be a multiple of heads {self.heads}")
        if len(set(self.strides)) != len(self.strides):
            raise ValueError("strides must be distinct")
        if self.layers < len(self.strides):
            raise ValueError(f"layers must be at least {len(self.strides)}: one for each of the strides")
        return self


class ModelSettings(Section):
    """The network."""

    image_encoder: Name = Field("resnet50", description="image encoder: a torchvision ResNet, or resnet10")
    image_weights: Name = Field(
        "pretrained", description="weights of the image encoder: `pretrained`, `none`, or the path of a file"
    )
    text_encoder: Name = Field(
        "ViT-B-32", description="text encoder: an open_clip model, or `tokens` (token embeddings only)"
    )
    text_weights: Name = Field(
        "openai", description="weights of the text encoder: an open_clip tag, `none`, or the path of a file"
    )
    text_width: int = Field(128, ge=8, le=4096, description="embedding channels of the text encoder `tokens`")
    text_context: int = Field(
        77, ge=8, le=77, description="largest number of tokens of an instruction; the rest is cut off"
    )
    train_text_layers: int = Field(
        0, ge=0, le=48, description="last layers of the text encoder to train, at encoder_rate; 0: frozen"
    )
    fusion: FusionSettings = FusionSettings()
    decoder_channels: tuple[Annotated[int, Field(ge=4, le=2048)], ...] = Field(
        (256, 128, 64, 32),
        min_length=4,
        max_length=4,
        description="decoder channels at strides 16, 8, 4 and 2",
    )


class AugmentSettings(Section):
    """Random changes that keep photo, mask and instruction consistent."""

    flip: Fraction = Field(
        0.5, description="probability of a mirrored image; left and right are swapped in the instruction"
    )
    crop: BelowOne = Field(0.2, description="largest share of a side to crop")
    color: Fraction = Field(0.2, description="largest change of brightness, contrast and saturation")
    blur: Fraction = Field(0.1, description="probability of a light blur")
    drop_words: Fraction = Field(
        0.0,
        description="probability of an empty instruction; 1: a text-blind run, which measures what the "
        "instructions contribute",
    )


class TrainSettings(Section):
    """One training run."""

    operational = frozenset({"workers", "log_every_steps", "devices", "text_cache_mb"})

    side_px: int = Field(512, ge=32, le=2048, multiple_of=32, description="side of a training image, in px")
    batch_size: Count = Field(32, description="samples per step, over all devices")
    accumulate: Count = Field(
        1, description="number of sequential parts of a device's share of a step (gradient accumulation)"
    )
    epochs: Count = Field(10, description="number of passes over the training split")
    max_steps: Count | None = Field(None, description="largest number of steps; null: all epochs")
    learning_rate: Positive = Field(3e-4, description="peak learning rate")
    encoder_rate: float = Field(
        0.1, ge=0, le=1, description="learning rate of the encoders, as a multiple of learning_rate"
    )
    optimizer: Literal["adamw", "adam", "sgd"] = Field("adamw", description="optimizer")
    beta2: BelowOne = Field(
        0.999, description="Adam's decay per step of the mean of squared gradients; lower it for few steps"
    )
    weight_decay: float = Field(0.01, ge=0, description="weight decay; norms and biases are not decayed")
    scheduler: Literal["cosine", "linear", "constant"] = Field(
        "cosine", description="learning rate schedule after warm-up"
    )
    warmup_steps: int = Field(500, ge=0, description="steps of linear warm-up; at most half of all steps")
    clip_norm: float = Field(1.0, ge=0, description="largest gradient norm; 0: no clipping")
    bce_weight: float = Field(1.0, ge=0, description="weight of binary cross-entropy in the loss")
    dice_weight: float = Field(1.0, ge=0, description="weight of the Dice loss in the loss")
    ema_decay: BelowOne = Field(
        0.999,
        description="decay per step of the moving average of the weights, which is evaluated and published; "
        "0: no average",
    )
    precision: Literal["float32", "bfloat16"] = Field(
        "bfloat16", description="arithmetic; devices without native bfloat16 use float32"
    )
    compile: bool = Field(True, description="use torch.compile on a GPU; on a CPU it gains nothing")
    augment: AugmentSettings = AugmentSettings()
    min_confidence: Fraction = Field(0.0, description="exclude masks with a lower confidence")
    include_global: bool = Field(True, description="include global edits")
    global_weight: Fraction = Field(1.0, description="weight of a global edit in the loss")
    weigh_confidence: bool = Field(
        False, description="multiply each sample's weight in the loss by the confidence of its mask"
    )
    text_cache_mb: int = Field(
        2048, ge=0, description="memory per process for cached features of a frozen text encoder, in MB"
    )
    workers: int = Field(
        4, ge=0, le=64, description="loader processes per device; 0: load in the training process"
    )
    devices: int | None = Field(
        None, ge=1, description="number of devices; null: every visible GPU, or the CPU if there is none"
    )
    log_every_steps: Count = Field(20, description="steps between log lines")
    evaluate_every_steps: Count = Field(500, description="steps between evaluations on dev")
    checkpoint_every_steps: Count = Field(500, description="steps between checkpoints")
    keep_checkpoints: Count = Field(3, description="last checkpoints to keep, besides the best on dev")
    seed: Seed = Field(0, description="seed of initial weights, sample order, augmentation and dropout")

    @model_validator(mode="after")
    def _some_loss(self) -> TrainSettings:
        if self.bce_weight + self.dice_weight == 0:
            raise ValueError("bce_weight and dice_weight must not both be 0")
        return self


class EcsSettings(Section):
    """Training as an Amazon ECS task. Its image contains this package; GPUs need the EC2 launch type."""

    cluster: Name = Field("default", description="name or ARN of the cluster")
    task_definition: Name = Field("bananagrams", description="family, family:revision or ARN")
    container: Name = Field("bananagrams", description="name of the container that trains")
    launch_type: Literal["EC2", "FARGATE"] = Field("EC2", description="launch type; Fargate has no GPUs")
    cpu: int | None = Field(
        None, ge=128, description="CPU units (1024: one core); null: as in the task definition"
    )
    memory_mib: int | None = Field(None, ge=128, description="memory in MiB; null: as in the task definition")
    gpus: int = Field(1, ge=0, le=64, description="GPUs of the task; 0: train on the CPU")
    subnets: tuple[str, ...] = Field((), description="subnet IDs for awsvpc; empty: another network mode")
    security_groups: tuple[str, ...] = Field((), description="security group IDs of an awsvpc task")
    poll_s: Positive = Field(6.0, description="interval between queries of state and messages, in seconds")


class RaySettings(Section):
    """Training as a Ray job. Its nodes contain this package and can reach the store and MLflow."""

    address: HttpUrl = Field("http://127.0.0.1:8265", description="URL of the dashboard, which accepts jobs")
    cpus: float = Field(1.0, ge=0, description="CPUs that Ray reserves for the job")
    gpus: int = Field(1, ge=0, le=64, description="GPUs of the job; 0: train on the CPU")
    poll_s: Positive = Field(1.0, description="interval between queries of the job's state, in seconds")


class LauncherSettings(Section):
    """Where training runs. None of these settings changes the result or makes a model stale."""

    kind: Literal["subprocess", "ecs", "ray"] = Field(
        "subprocess", description="`subprocess` on this machine, an `ecs` task, or a `ray` job"
    )
    retries: int = Field(
        3, ge=0, le=100, description="restarts from the last checkpoint if the training dies"
    )
    retry_delay_s: float = Field(10.0, ge=0, description="delay before each restart, in seconds")
    ecs: EcsSettings = EcsSettings()
    ray: RaySettings = RaySettings()


class MlflowSettings(Section):
    """Names in MLflow."""

    experiment: Name = Field("bananagrams", description="name of the experiment")
    registered_model: str = Field(
        "bananagrams-mask", min_length=1, pattern=r"^[^/:]+$", description="name of the registered model"
    )
    ui_url: HttpUrl = Field("http://127.0.0.1:5000", description="URL of `mlflow ui`, for links to runs")


class CheckSettings(Section):
    """Limits of the asset checks."""

    max_rejected: Fraction = Field(0.2, description="largest share of a shard's records that may be rejected")
    max_lost: Fraction = Field(0.1, description="largest share of a shard's records without fetched images")
    min_mask_iou: Fraction = Field(0.88, description="smallest mean IoU with the true masks of made pairs")
    min_gain: float = Field(
        0.02,
        ge=0,
        le=1,
        description="smallest gain in dev IoU over the best trivial baseline, and over the model's own dev "
        "IoU with shuffled instructions",
    )


class AutomationSettings(Section):
    """Scheduled rebuilds."""

    rebuild_cron: str = Field("0 3 * * *", description="cron schedule (UTC) for reading the sources again")
    sensor_interval_s: int = Field(300, ge=30, description="seconds between searches for stale shards")


class StoreSettings(Section):
    """Where files are stored. None of these settings changes their contents."""

    url: str | None = Field(
        None,
        min_length=1,
        description="folder or s3://bucket/prefix; null: a folder under DAGSTER_HOME or .bananagrams",
    )
    may_be_public: bool = Field(
        False, description="write to a publicly readable store; the licences of most sources forbid that"
    )


class Profile(Section):
    """All settings of the project."""

    store: StoreSettings = StoreSettings()
    source: SourceSettings = SourceSettings()
    fetch: FetchSettings = FetchSettings()
    splits: SplitsSettings = SplitsSettings()
    align: AlignSettings = AlignSettings()
    mask: MaskSettings = MaskSettings()
    shards: ShardSettings = ShardSettings()
    overlays: OverlaySettings = OverlaySettings()
    model: ModelSettings = ModelSettings()
    train: TrainSettings = TrainSettings()
    launcher: LauncherSettings = LauncherSettings()
    mlflow: MlflowSettings = MlflowSettings()
    checks: CheckSettings = CheckSettings()
    automation: AutomationSettings = AutomationSettings()

    def shard_keys(self, split: str | None = None) -> list[str]:
        """Return the partition keys `<split>-<00000>` of one split, or of all if None, in order."""
        return self.splits.shard_keys(split)
