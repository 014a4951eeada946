"""The profile: every setting of a build and of a training run, in one typed, validated model.

A setting's unit is in its name (`_px`, `_s`) or in its description; its range is in its constraint.
`profiles` reads one from its layers.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from .errors import BananagramsError

Fraction = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]
Count = Annotated[int, Field(ge=1)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]


class ConfigError(BananagramsError, ValueError):
    """A profile that cannot be used; the message names each key, what is wrong and what is allowed."""


class Section(BaseModel):
    """A group of settings: unknown keys are refused, values are checked and cannot be changed."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    operational: ClassVar[frozenset[str]] = frozenset()
    """Settings that change how the work is done but never its result; digests leave them out."""

    def digest(self) -> str:
        """16 hex digits over every setting of this section that can change a result."""
        content = self.model_dump(mode="json", exclude=set(self.operational))
        return digest_of(content)


def digest_of(content: Any) -> str:
    """16 hex digits of SHA-256 over the canonical JSON of `content`."""
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def flatten(content: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Each leaf of nested settings as (dotted path, value), in order; an empty section is a leaf."""
    for key, value in content.items():
        path = f"{prefix}{key}"
        if isinstance(value, Mapping) and value:
            yield from flatten(value, path + ".")
        else:
            yield path, value


class SampleSettings(Section):
    """The embedded sample, used where a manifest is `sample:`."""

    pairs: Count = Field(480, description="edited pairs to make")
    side_px: int = Field(320, ge=128, le=2048, description="longest side of a made photograph")
    strength: float = Field(
        1.0, ge=0, le=2, description="how strongly the made editor re-synthesises the whole picture"
    )
    seed: Seed = Field(0, description="seed of every random choice")


class OpenImagesSettings(Section):
    """The set that the source photographs of pico-banana-400k were taken from."""

    csv: str | None = Field(
        None,
        min_length=1,
        description="path or URL of train-images-boxable-with-rotation.csv, which gives a photograph's "
        "ImageID by its URL, with its author and licence; null: ImageIDs are not looked up",
    )
    folder: str | None = Field(
        None, min_length=1, description="folder of unpacked pictures, <ImageID>.jpg; null: there is none"
    )
    mirror_prefix: str = Field(
        "https://open-images-dataset.s3.amazonaws.com/train/",
        pattern=r"^https?://.+/$",
        description="what `<ImageID>.jpg` is appended to",
    )


class SourceSettings(Section):
    """Where records and pictures come from."""

    manifests: tuple[str, ...] = Field(
        ("https://ml-site.cdn-apple.com/datasets/pico-banana-300k/nb/jsonl/sft.jsonl",),
        min_length=1,
        description="paths or http(s) URLs of JSON-lines files; `sample:` is the embedded sample",
    )
    cdn_prefix: str = Field(
        "https://ml-site.cdn-apple.com/datasets/pico-banana-300k/nb/",
        pattern=r"^https?://.+/$",
        description="what a record's output_image is appended to",
    )
    photos_from: tuple[Literal["local", "mirror", "original"], ...] = Field(
        ("local", "mirror", "original"),
        min_length=1,
        description="where a source photograph is looked for, in this order: `local` files (the record's "
        "local_input_image, open_images.folder), the `mirror` of Open Images, the record's `original` URL",
    )
    open_images: OpenImagesSettings = OpenImagesSettings()
    kinds: tuple[Literal["sft", "preference", "multi-turn"], ...] = Field(
        (), description="kinds of records to include; empty: all of them"
    )
    edit_types: tuple[str, ...] = Field((), description="edit types to include; empty: all of them")
    categories: tuple[
        Literal["Object", "Photometric", "Scene", "Style", "Text", "Human", "Geometric", "unknown"], ...
    ] = Field((), description="categories of edit types to include; empty: all of them")
    scopes: tuple[Literal["local", "global", "geometric", "unknown"], ...] = Field(
        (), description="scopes of edit types to include; empty: all of them"
    )
    max_samples: Count | None = Field(None, description="take at most this many records, spread evenly")
    license: str = Field(
        "edits CC BY-NC-ND 4.0 (research only, derivatives not redistributed); sources CC BY 2.0",
        description="written into the metadata of every sample",
    )
    sample: SampleSettings = SampleSettings()

    @field_validator("photos_from")
    @classmethod
    def _each_once(cls, places: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(places)) != len(places):
            raise ValueError(f"names a place twice: {', '.join(places)}")
        return places


class HostSettings(Section):
    """What one host and its subdomains are asked at most, by all runs on this machine together."""

    host: str = Field(pattern=r"^[a-z0-9][a-z0-9.-]*$", description="a name; subdomains count with it")
    in_flight: int = Field(2, ge=1, le=256, description="requests at once")
    per_second: Positive | None = Field(None, description="requests started a second; null: no limit")


FLICKR = HostSettings(host="staticflickr.com", in_flight=2, per_second=2.0)
"""Flickr answers 429 to a single eager worker and has closed accounts of those who went on."""


class FetchSettings(Section):
    """How pictures are fetched, and what is accepted."""

    operational = frozenset(
        {
            "concurrency", "attempts", "timeout_s", "deadline_s", "backoff_s", "user_agent", "contact",
            "in_flight", "per_second", "hosts",
        }
    )  # fmt: skip

    concurrency: int = Field(16, ge=1, le=256, description="pictures in flight at once, of one run")
    attempts: int = Field(4, ge=1, le=20, description="tries a picture")
    timeout_s: Positive = Field(60.0, description="total time for one try, in seconds")
    deadline_s: Positive = Field(
        300.0, description="total time for one picture from its first request on, tries and waits together"
    )
    backoff_s: Positive = Field(1.0, description="wait before the second try; doubles with each, with jitter")
    in_flight: int = Field(
        32, ge=1, le=256, description="requests at once to one host, of all runs on this machine"
    )
    per_second: Positive | None = Field(
        None, description="requests a second to one host, of all runs on this machine; null: no limit"
    )
    hosts: tuple[HostSettings, ...] = Field((FLICKR,), description="hosts with limits of their own")
    user_agent: str = Field(
        "bananagrams/0.1 (dataset builder; research use)",
        min_length=1,
        pattern=r"^[ -~]+$",
        description="how we name ourselves",
    )
    contact: str | None = Field(
        None,
        min_length=1,
        pattern=r"^[ -~]+$",
        description="a URL or mail address for those whom we ask, added to user_agent",
    )
    honour_opt_out: bool = Field(
        True, description="refuse pictures whose server opts out (X-Robots-Tag: noai, noindex and the like)"
    )
    max_bytes: int = Field(64_000_000, ge=1024, description="largest accepted file, in bytes")
    max_pixels: int = Field(100_000_000, ge=1024, description="largest accepted picture, in pixels")
    largest_side_px: int | None = Field(
        None, ge=64, description="fit stored pictures to this longest side; null: bytes as received"
    )


class SplitSettings(Section):
    ratio: float = Field(ge=0, le=1, description="share of the source photographs")
    shards: int = Field(ge=1, le=100_000, description="shards of this split")


class SplitsSettings(Section):
    """Share and shard count of each split. A source photograph decides its own split and shard."""

    seed: Seed = Field(0, description="changes which photograph falls in which split")
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
        return {"train": self.train, "dev": self.dev, "test": self.test}


class AlignSettings(Section):
    """SIFT alignment of the edited picture onto its input."""

    working_side_px: int = Field(
        512, ge=128, le=4096, description="longest side at which corners are tracked"
    )
    features: int = Field(1500, ge=100, le=100_000, description="most SIFT features, where few do not do")
    ratio: float = Field(0.8, gt=0, lt=1, description="Lowe's ratio between best and second match")
    ransac_px: Positive = Field(1.5, description="inlier distance of features, in px where they are found")
    min_inliers: int = Field(12, ge=4, description="fewer corners that agree: rejected")
    min_inlier_ratio: Fraction = Field(0.15, description="a smaller share of inliers than this: rejected")
    min_confidence: Fraction = Field(0.7, description="an alignment less likely right: rejected")
    min_overlap: Fraction = Field(0.3, description="a smaller known share of the input than this: rejected")
    max_scale: float = Field(4.0, gt=1, description="largest scale, or its inverse, after resizing is undone")
    max_anisotropy: float = Field(1.6, gt=1, description="largest ratio of the two axes' scales")


def _odd(value: int) -> int:
    if value % 2 == 0:
        raise ValueError("must be odd (a kernel has a centre)")
    return value


class MaskSettings(Section):
    """The difference mask of an aligned pair."""

    working_side_px: int | None = Field(
        512, ge=128, description="longest side at which the mask is made; null: the input's size"
    )
    blur_kernel_px: int = Field(3, ge=1, le=51, description="Gaussian blur before differencing, odd; 1: none")
    threshold_low: Positive = Field(3.0, description="least colour difference (CIE Lab dE) of a mask pixel")
    threshold_high: Positive = Field(15.0, description="least dE that starts a mask component")
    noise_low: float = Field(6.0, ge=0, description="low threshold, in units of the pair's own noise")
    noise_high: float = Field(15.0, ge=0, description="high threshold, in units of the pair's own noise")
    open_px: int = Field(1, ge=1, le=51, description="opening kernel, odd; 1: none")
    close_px: int = Field(9, ge=1, le=51, description="closing kernel, odd; 1: none")
    smallest_component: Fraction = Field(
        0.0005, description="drop components under this share of the picture"
    )
    border_px: int = Field(4, ge=0, le=256, description="width of the border of the overlap that is ignored")
    global_area: Fraction = Field(0.85, description="a mask over this share of the overlap is a global edit")

    _kernels_are_odd = field_validator("blur_kernel_px", "open_px", "close_px")(_odd)

    @model_validator(mode="after")
    def _low_under_high(self) -> MaskSettings:
        if self.threshold_low > self.threshold_high or self.noise_low > self.noise_high:
            raise ValueError(
                "threshold_low and noise_low must not exceed threshold_high and noise_high (hysteresis)"
            )
        return self


class ShardSettings(Section):
    """What a dataset sample holds, and what is left out."""

    # What the files say is compared shard by shard, see data/verdicts.py.
    operational = frozenset({"verdicts"})

    verdicts: tuple[str, ...] = Field(
        (),
        description="files of verdicts saved from overlay pages, whose bad samples are left out: paths, or "
        "store:NAME",
    )
    jpeg_quality: int = Field(95, ge=1, le=100, description="of input.jpg where it must be encoded")
    largest_side_px: int | None = Field(
        None, ge=64, description="fit input.jpg to this longest side; null: the input's size"
    )
    untouched: bool = Field(
        False,
        description="ship only photographs whose bytes can go in as they were received; one that would have "
        "to be encoded is dropped with its reason",
    )


class OverlaySettings(Section):
    """Pages to judge masks by eye."""

    tile_px: int = Field(512, ge=64, le=1024, description="longest side of a picture on a page")
    max_samples: int = Field(240, ge=1, description="samples drawn a shard, least confident first")
    jpeg_quality: int = Field(85, ge=1, le=100)


class FusionSettings(Section):
    """Cross-attention from image features to text tokens."""

    width: int = Field(256, ge=16, le=2048, description="channels of the fused features")
    heads: int = Field(8, ge=1, le=64)
    layers: int = Field(4, ge=1, le=24, description="cross-attention layers in all, spread over the strides")
    strides: tuple[Literal[4, 8, 16, 32], ...] = Field((32, 16), min_length=1, description="where they stand")
    dropout: float = Field(0.0, ge=0, lt=1)

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
    """The network. Weights are `pretrained`, `none`, or the path of a local file."""

    image_encoder: str = Field(
        "resnet50", min_length=1, description="a torchvision ResNet, by name; or resnet10"
    )
    image_weights: str = Field("pretrained", min_length=1)
    text_encoder: str = Field(
        "ViT-B-32",
        min_length=1,
        description="an open_clip model, by name, or `tokens`: token embeddings alone",
    )
    text_weights: str = Field(
        "openai", min_length=1, description="an open_clip pretrained tag, `none`, or the path of a local file"
    )
    text_width: int = Field(128, ge=8, le=4096, description="embedding width where text_encoder is `tokens`")
    text_context: int = Field(77, ge=8, le=77, description="tokens read of an instruction")
    train_text_layers: int = Field(
        0,
        ge=0,
        le=48,
        description="last layers of the text encoder that train, at encoder_rate; 0: it is frozen",
    )
    fusion: FusionSettings = FusionSettings()
    decoder_channels: tuple[Annotated[int, Field(ge=4, le=2048)], ...] = Field(
        (256, 128, 64, 32), min_length=4, max_length=4, description="at strides 16, 8, 4 and 2"
    )


class AugmentSettings(Section):
    """Random changes that keep photograph, mask and words consistent."""

    flip: Fraction = Field(0.5, description="chance of a mirror image; left and right swap in the words")
    crop: float = Field(0.2, ge=0, lt=1, description="largest share of a side that is cut away")
    color: Fraction = Field(0.2, description="largest change of brightness, contrast and saturation")
    blur: Fraction = Field(0.1, description="chance of a light blur")
    drop_words: Fraction = Field(
        0.0,
        description="chance of an empty instruction; 1: a text-blind run, to measure what words are worth",
    )


class TrainSettings(Section):
    """One training run."""

    operational = frozenset({"workers", "log_every_steps", "devices", "text_cache_mb"})

    side_px: int = Field(512, ge=32, le=2048, multiple_of=32, description="side of a training picture")
    batch_size: Count = Field(32, description="samples a step, over all devices")
    accumulate: Count = Field(
        1,
        description="parts that a device's share of a step is taken in, one after the other, to save memory",
    )
    epochs: Count = Field(10)
    max_steps: Count | None = Field(None, description="stop after this many steps even if epochs remain")
    learning_rate: Positive = Field(3e-4)
    encoder_rate: float = Field(0.1, ge=0, le=1, description="learning rate of the encoders, as a factor")
    optimizer: Literal["adamw", "adam", "sgd"] = "adamw"
    beta2: float = Field(
        0.999,
        ge=0,
        lt=1,
        description="decay a step of Adam's mean of squared gradients; lower where steps are few",
    )
    weight_decay: float = Field(0.01, ge=0)
    scheduler: Literal["cosine", "linear", "constant"] = "cosine"
    warmup_steps: int = Field(500, ge=0)
    clip_norm: float = Field(1.0, ge=0, description="largest gradient norm; 0: no clipping")
    bce_weight: float = Field(1.0, ge=0)
    dice_weight: float = Field(1.0, ge=0)
    ema_decay: float = Field(
        0.999,
        ge=0,
        lt=1,
        description="decay a step of the weights' moving average, used instead of them; 0: none",
    )
    precision: Literal["float32", "bfloat16"] = "bfloat16"
    compile: bool = Field(True, description="torch.compile where there is a GPU; on a CPU it does not pay")
    augment: AugmentSettings = AugmentSettings()
    min_confidence: Fraction = Field(0.0, description="leave out masks less confident than this")
    include_global: bool = Field(True, description="train on whole-picture edits too")
    global_weight: Fraction = Field(1.0, description="weight of a whole-picture edit in the loss")
    weigh_confidence: bool = Field(
        False, description="weigh each sample in the loss by its mask's confidence"
    )
    text_cache_mb: int = Field(
        2048, ge=0, description="memory for the features of a frozen text encoder, a process, in MB"
    )
    workers: int = Field(4, ge=0, le=64, description="loader processes a device; 0: in the training process")
    devices: int | None = Field(
        None, ge=1, description="devices to train on; null: every visible GPU, else the CPU"
    )
    log_every_steps: Count = Field(20)
    evaluate_every_steps: Count = Field(500)
    checkpoint_every_steps: Count = Field(500)
    keep_checkpoints: Count = Field(3)
    seed: Seed = 0

    @model_validator(mode="after")
    def _some_loss(self) -> TrainSettings:
        if self.bce_weight + self.dice_weight == 0:
            raise ValueError("bce_weight and dice_weight must not both be 0")
        return self


class EcsSettings(Section):
    """A training as one Amazon ECS task. Its image holds this package; GPUs need the EC2 launch type."""

    cluster: str = Field("default", min_length=1)
    task_definition: str = Field("bananagrams", min_length=1, description="family, family:revision or ARN")
    container: str = Field("bananagrams", min_length=1, description="the container that trains")
    launch_type: Literal["EC2", "FARGATE"] = Field("EC2", description="Fargate has no GPUs")
    cpu: int | None = Field(
        None, ge=128, description="CPU units (1024: one core); null: as the task definition says"
    )
    memory_mib: int | None = Field(None, ge=128, description="null: as the task definition says")
    gpus: int = Field(1, ge=0, le=64, description="GPUs of the task; 0: train on the CPU")
    subnets: tuple[str, ...] = Field((), description="of an awsvpc task; empty: another network mode")
    security_groups: tuple[str, ...] = ()
    poll_s: Positive = Field(6.0, description="how often the task and its messages are asked for")


class RaySettings(Section):
    """A training as one Ray job. Its nodes hold this package, and reach store and MLflow."""

    address: str = Field(
        "http://127.0.0.1:8265",
        pattern=r"^https?://",
        description="the cluster's dashboard, which takes jobs",
    )
    cpus: float = Field(1.0, ge=0, description="CPUs that Ray sets aside for the job")
    gpus: int = Field(1, ge=0, le=64, description="GPUs of the job; 0: train on the CPU")
    poll_s: Positive = Field(1.0, description="how often the job is asked for")


class LauncherSettings(Section):
    """Where training runs. Nothing here changes its result, so nothing here makes a model stale."""

    kind: Literal["subprocess", "ecs", "ray"] = Field(
        "subprocess", description="this machine, an ECS task, or a Ray job"
    )
    retries: int = Field(
        3,
        ge=0,
        le=100,
        description="times that a training whose process died goes on from its last checkpoint",
    )
    retry_delay_s: float = Field(10.0, ge=0, description="wait before each")
    ecs: EcsSettings = EcsSettings()
    ray: RaySettings = RaySettings()


class MlflowSettings(Section):
    """Names in MLflow."""

    experiment: str = Field("bananagrams", min_length=1)
    registered_model: str = Field("bananagrams-mask", min_length=1, pattern=r"^[^/:]+$")
    ui_url: str = Field(
        "http://127.0.0.1:5000",
        pattern=r"^https?://",
        description="where `mlflow ui` is read, for links to runs",
    )


class CheckSettings(Section):
    """Limits of the asset checks."""

    max_rejected: Fraction = Field(0.2, description="largest share of a shard's records that may be lost")
    max_lost: Fraction = Field(
        0.1, description="largest share of a shard's records whose pictures could not be had"
    )
    min_mask_iou: Fraction = Field(
        0.88, description="mean IoU that masks must reach on a few made pairs whose true masks are known"
    )
    min_gain: float = Field(
        0.02,
        ge=0,
        le=1,
        description="dev IoU the model must have over the best trivial baseline, and over its own with "
        "shuffled instructions",
    )


class AutomationSettings(Section):
    """Scheduled rebuilds."""

    rebuild_cron: str = Field("0 3 * * *", description="when the schedule reads the sources again (UTC)")
    sensor_interval_s: int = Field(300, ge=30, description="how often stale shards are looked for")


class StoreSettings(Section):
    """Where files are kept. None of this changes what is in them."""

    url: str | None = Field(
        None,
        min_length=1,
        description="a folder or s3://bucket/prefix; null: under DAGSTER_HOME or .bananagrams",
    )
    may_be_public: bool = Field(
        False,
        description="write even where anybody can read; data derived from most sources may not go there",
    )


class Profile(Section):
    """Every setting of the project."""

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
        """Partition keys `<split>-<00000>`, of one split or of all, in order."""
        return [
            f"{name}-{index:05d}"
            for name, settings in self.splits.by_name().items()
            if split in (None, name)
            for index in range(settings.shards)
        ]
