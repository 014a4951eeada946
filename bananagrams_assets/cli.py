"""The `bananagrams` command: thin commands over the same assets and functions that the UI uses."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click

from . import __version__
from .config import Profile, flatten
from .console import (
    confidence_in_words,
    mask_in_words,
    progress,
    show_dataset,
    show_model,
    show_registry,
    show_results,
    show_status,
    source_of,
)
from .profiles import (
    PROFILE_VARIABLE,
    SET_VARIABLE,
    STORE_VARIABLE,
    LoadedProfile,
    default_store,
    load_profile,
    parse_setting,
)

MODEL_ASSETS = ("mask_model", "champion")
DATASET_ASSETS = (
    "manifest", "image_pairs", "aligned_pairs", "edit_masks", "shards", "validation_overlays", "split_index",
)  # fmt: skip


class Commands(click.Group):
    """Errors of our own are for people: one line and exit code 1, where others keep their traceback."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except Exception as error:
            if type(error).__module__.startswith("bananagrams_assets"):
                raise click.ClickException(" ".join(str(error).split())) from error
            raise


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__)
def main() -> None:
    """From photo edits to edit masks, and a model that predicts them.

    \b
    Try it:            bananagrams demo
    Your own pairs:    bananagrams build --manifest sft.jsonl --store dataset
    One pair:          bananagrams mask before.jpg after.png --output mask.png --overlay overlay.jpg

    Every command works on the same assets, store and Dagster instance as `dagster dev`. The profile
    (--profile, or BANANAGRAMS_PROFILE) holds all settings; `bananagrams config show` prints them.
    """


def profile_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """--profile, --store and --set, as every command takes them that reads a profile."""
    for option in (
        click.option("--set", "settings", multiple=True, metavar="KEY=VALUE",
                     help="Change one setting, for example --set mask.blur_kernel_px=5; may be repeated."),
        click.option("--store", metavar="DIR_OR_S3", help="Folder or s3://bucket/prefix for all files."),
        click.option("--profile", metavar="NAME_OR_FILE", help="demo, pico-banana, or a YAML file."),
    ):  # fmt: skip
        command = option(command)
    return command


def configure(
    profile: str | None, store: str | None, settings: Sequence[str], more: dict[str, Any] | None = None
) -> LoadedProfile:
    """Check the choices of the command line and hand them on to every process of ours.

    Asset definitions read their profile from the environment, in this process and in its children.
    Raises ConfigError.
    """
    if profile:
        file = Path(profile).expanduser()
        os.environ[PROFILE_VARIABLE] = str(file.absolute()) if file.is_file() else profile
    if store:
        os.environ[STORE_VARIABLE] = store if "://" in store else str(Path(store).expanduser().absolute())
    chosen = dict(parse_setting(text) for text in settings) | (more or {})
    lines = [
        os.environ.get(SET_VARIABLE, ""),
        *(f"{key}={json.dumps(value)}" for key, value in chosen.items()),
    ]
    os.environ[SET_VARIABLE] = "\n".join(line for line in lines if line)
    home = Path(os.environ.setdefault("DAGSTER_HOME", ".bananagrams")).expanduser().absolute()
    os.environ["DAGSTER_HOME"] = str(home)
    return load_profile()


def build_stale(profile: Profile, workers: int, retry_failed: bool = False) -> int:
    """Build every stale partition of the dataset; returns how many there were.

    With `retry_failed` shards with failures that may pass count as stale.
    """
    from .stages.stage import stale_partitions
    from .stages.status import retryable_failures
    from .storage.open_store import open_store

    store = open_store(default_store(profile))
    if not stale_partitions(store, profile, DATASET_ASSETS) and not (
        retry_failed and any(retryable_failures(store, shard) for shard in profile.shard_keys())
    ):
        return 0
    from .defs import local

    local.prepare_home(Path(os.environ["DAGSTER_HOME"]))
    with progress(1 + len(profile.shard_keys()) + 3, "partition") as report:
        return local.build_dataset(store, workers, report, retry_failed)


@main.command()
@click.option("--workers", type=click.IntRange(min=1), default=os.cpu_count() or 1, show_default=True,
              help="Shards built at once.")  # fmt: skip
@profile_options
def demo(workers: int, profile: str | None, store: str | None, settings: tuple[str, ...]) -> None:
    """The whole graph on the embedded sample, offline: dataset, pages, a trained and registered model.

    Run it again and it finds everything up to date.
    """
    loaded = configure(profile or "demo", store, settings)
    count = build_stale(loaded.profile, workers)
    click.echo(f"dataset: {count} partitions built" if count else "dataset: everything is up to date")
    if train_stale(loaded.profile, rebuild=False, resume=None):
        click.echo("model: trained and registered")
    else:
        click.echo("model: everything is up to date")
    show_results(loaded.profile)


@main.command()
@click.option("--manifest", "manifests", multiple=True, metavar="FILE_OR_URL",
              help="JSON-lines file of records, local or http(s); may be repeated.")  # fmt: skip
@click.option("--max-samples", type=click.IntRange(min=1), help="Take at most N records, spread evenly.")
@click.option("--workers", type=click.IntRange(min=1), default=os.cpu_count() or 1, show_default=True,
              help="Shards built at once.")  # fmt: skip
@click.option("--dev", is_flag=True, help="Also extract each shard into a folder beside it, to look into.")
@click.option("--retry-failed", is_flag=True,
              help="Ask again for pictures whose failure may pass, as of busy servers.")  # fmt: skip
@profile_options
def build(
    manifests: tuple[str, ...], max_samples: int | None, workers: int, dev: bool, retry_failed: bool,
    profile: str | None, store: str | None, settings: tuple[str, ...],
) -> None:  # fmt: skip
    """Build the dataset: pictures, alignment, masks, shards, split indexes and pages to review.

    Only what is missing or stale is built. Records may name local files (`local_input_image`, and
    `output_image` relative to the manifest).

    \b
    bananagrams build --profile pico-banana --max-samples 500 --store pico-500 --dev
    bananagrams build --manifest mine/sft.jsonl --store s3://bucket/prefix
    """
    more: dict[str, Any] = {}
    if manifests:
        more["source.manifests"] = [
            name if "://" in name or name == "sample:" else str(Path(name).expanduser().absolute())
            for name in manifests
        ]
    if max_samples:
        more["source.max_samples"] = max_samples
    loaded = configure(profile, store, settings, more)
    count = build_stale(loaded.profile, workers, retry_failed)
    click.echo(f"{count} partitions built" if count else "everything is up to date")
    if dev:
        extract_all(loaded.profile)
    show_dataset(loaded.profile)


@main.command()
@profile_options
def status(profile: str | None, store: str | None, settings: tuple[str, ...]) -> None:
    """How far every shard's pictures are: done, failed by reason, to retry, bytes, rate, time left."""
    show_status(configure(profile, store, settings).profile)


@main.command()
@click.option(
    "--resume", metavar="CHECKPOINT", help="Go on from a checkpoint: its name in the store, or a path."
)
@click.option("--config", "config_file", metavar="FILE", type=click.Path(exists=True, dir_okay=False),
              help="A profile file; the same as --profile.")  # fmt: skip
@click.option("--rebuild", is_flag=True, help="Train even if nothing changed since the last training.")
@profile_options
def train(
    resume: str | None, config_file: str | None, rebuild: bool,
    profile: str | None, store: str | None, settings: tuple[str, ...],
) -> None:  # fmt: skip
    """Train the mask model on the built dataset, register it, and make it champion if it is better."""
    loaded = configure(config_file or profile, store, settings)
    if not train_stale(loaded.profile, rebuild, resume):
        click.echo("everything is up to date; --rebuild trains all the same")
    show_model(loaded.profile)


def train_stale(profile: Profile, rebuild: bool, resume: str | None) -> bool:
    """Train and promote if dataset, settings or code changed; whether there was anything to do."""
    from .stages.stage import stale_partitions
    from .storage.open_store import open_store

    store = open_store(default_store(profile))
    if not (rebuild or resume or stale_partitions(store, profile, MODEL_ASSETS)):
        return False
    from .defs import local

    local.prepare_home(Path(os.environ["DAGSTER_HOME"]))
    local.train_model(rebuild, resume)
    return True


@main.command()
@click.option("--back", is_flag=True, help="Make the previous champion champion again.")
@profile_options
def champion(back: bool, profile: str | None, store: str | None, settings: tuple[str, ...]) -> None:
    """Which version is champion and why, and the way back to the one before.

    A version taken back stays `previous`, so that --back once more undoes it; no comparison promotes it.
    """
    loaded = configure(profile, store, settings)
    if back:
        from .defs import local

        local.prepare_home(Path(os.environ["DAGSTER_HOME"]))
        local.go_back()
    show_registry(loaded.profile)


def model_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """--model, as every command takes it that predicts."""
    return click.option(
        "--model", default="champion", show_default=True, metavar="NAME",
        help="Alias or version in the registry, models:/NAME@ALIAS, or a checkpoint: its name in the store, "
             "or a path.",
    )(command)  # fmt: skip


@main.command()
@click.option("--split", type=click.Choice(["train", "dev", "test"]), default="test", show_default=True)
@model_option
@click.option("--output", type=click.Path(dir_okay=False), help="Write all metrics to this JSON file.")
@profile_options
def evaluate(
    split: str, model: str, output: str | None,
    profile: str | None, store: str | None, settings: tuple[str, ...],
) -> None:  # fmt: skip
    """Score a model on a split, beside the trivial baselines."""
    loaded = configure(profile, store, settings)
    from .learn import evaluate as evaluation
    from .learn.predict import load_model
    from .storage.open_store import open_store

    predictor = load_model(model, loaded.profile)
    metrics = evaluation.evaluate(predictor, open_store(default_store(loaded.profile)), loaded.profile, split)
    for path, value in flatten(metrics):
        click.echo(f"{path:40} {value:.4f}" if isinstance(value, float) else f"{path:40} {value}")
    if output:
        Path(output).write_text(json.dumps(metrics, indent=1, sort_keys=True), encoding="utf-8")


@main.command()
@click.argument("sources", nargs=-1, required=True, metavar="SOURCE... [INSTRUCTION]")
@click.option("--output", required=True, metavar="FILE_OR_DIR",
              help="The mask of one photograph, as PNG (255: will change); else a folder.")  # fmt: skip
@click.option("--overlay", metavar="FILE_OR_DIR",
              help="The mask drawn over the photograph, as JPEG; for several a folder.")  # fmt: skip
@click.option("--soft", is_flag=True, help="Write probabilities, 0 to 255, in place of 0 and 255.")
@click.option("--threshold", type=click.FloatRange(0, 1),
              help="Least probability of a mask pixel; without it, what scored best on dev.")  # fmt: skip
@click.option("--batch-size", type=click.IntRange(min=1), default=16, show_default=True)
@model_option
@profile_options
def predict(
    sources: tuple[str, ...], output: str, overlay: str | None, soft: bool, threshold: float | None,
    batch_size: int, model: str, profile: str | None, store: str | None, settings: tuple[str, ...],
) -> None:  # fmt: skip
    """Which region of a photograph will the instruction change?

    A SOURCE is a photograph, a folder of photographs, a table (CSV or JSON lines with the columns `photo`
    and `instruction`), or a shard of the dataset (a tar, or an extracted folder); tables and shards bring
    their own instructions. For more than one photograph the masks go into a folder, with a table
    `predictions.csv` of what became of each. A photograph that cannot be read is a row of it and makes
    the exit status 1, and the others are predicted all the same.

    \b
    bananagrams predict cat.jpg "Write HELLO in the top left" --output mask.png --overlay overlay.jpg
    bananagrams predict holiday "Remove the people" --output masks --overlay overlays
    bananagrams predict wishes.csv --output masks --soft
    bananagrams predict .bananagrams/store/shards/test/test-00000.tar --output masks
    """
    loaded = configure(profile, store, settings)
    paths, instruction = split_arguments(sources)
    if instruction and len(paths) == 1 and paths[0].is_file() and Path(output).suffix.lower() == ".png":
        predict_one(paths[0], instruction, output, overlay, soft, threshold, model, loaded.profile)
        return
    from .learn.batch_prediction import ROWS, Output, list_items, predict_all
    from .learn.predict import load_model
    from .storage.open_store import open_store

    items = list_items(paths, instruction)
    out = Output(open_store(output), open_store(overlay) if overlay else None, soft, threshold)
    predictor = load_model(model, loaded.profile)
    done = 0
    with progress(0, "photograph") as report:

        def note(row: Any) -> None:
            nonlocal done
            done += 1
            what = f"{row.area:.1%} will change" if row.status == "ok" else f"failed: {row.reason}"
            report(f"{row.item.photo}: {what}")

        failed = predict_all(predictor, items, out, loaded.profile.fetch.max_pixels, note, batch_size)
    click.echo(f"{done - len(failed)} masks and {ROWS} in {output}")
    if failed:
        raise click.ClickException(
            f"{len(failed)} of {done} photographs failed, see {ROWS}; the first: {failed[0].item.photo}: "
            f"{failed[0].reason}"
        )


def split_arguments(arguments: Sequence[str]) -> tuple[list[Path], str | None]:
    """Sources and, where the last argument is no file or folder, the instruction that it then is."""
    from .vision.images import SUFFIXES

    last = Path(arguments[-1])
    if last.exists() or last.suffix.lower() in (*SUFFIXES, ".csv", ".jsonl", ".json", ".tar"):
        names, instruction = arguments, None
    else:
        names, instruction = arguments[:-1], arguments[-1].strip() or None
    for name in names:
        if not Path(name).exists():
            raise click.UsageError(f"{name}: no such file or folder")
    if not names:
        raise click.UsageError(f"{arguments[-1]}: no such file or folder")
    return [Path(name) for name in names], instruction


def predict_one(
    photo: Path, instruction: str, output: str, overlay: str | None, soft: bool, threshold: float | None,
    model: str, profile: Profile,
) -> None:  # fmt: skip
    """One photograph, to the very files that were named."""
    image = read_image(str(photo), profile)
    from .learn import predict as prediction
    from .vision.images import encode_png_mask

    predictor = prediction.load_model(model, profile)
    probability = prediction.predict(predictor, [image], [instruction])[0]
    mask = probability >= (predictor.threshold if threshold is None else threshold)
    data = prediction.encode_soft(probability) if soft else encode_png_mask(mask, one_bit=False)
    Path(output).write_bytes(data)
    click.echo(f"{output}: {mask.mean():.1%} of the picture will change")
    if overlay:
        write_overlay(overlay, image, mask)


@main.command()
@click.argument("before", type=click.Path(exists=True, dir_okay=False))
@click.argument("after", type=click.Path(exists=True, dir_okay=False))
@click.option(
    "--output", required=True, type=click.Path(dir_okay=False), help="The mask, as PNG (255: edited)."
)
@click.option(
    "--overlay", type=click.Path(dir_okay=False), help="The mask drawn over the photograph, as JPEG."
)
@profile_options
def mask(
    before: str, after: str, output: str, overlay: str | None,
    profile: str | None, store: str | None, settings: tuple[str, ...],
) -> None:  # fmt: skip
    """Align AFTER with BEFORE and find what the edit changed.

    \b
    bananagrams mask before.jpg after.png --output mask.png --overlay overlay.jpg
    """
    loaded = configure(profile, store, settings)
    for path in (output, overlay):
        if path and not Path(path).absolute().parent.is_dir():
            raise click.ClickException(f"{path} cannot be written: its folder does not exist")
    from .vision.align import align
    from .vision.images import encode_png_mask
    from .vision.mask import edit_mask

    first, second = (read_image(path, loaded.profile) for path in (before, after))
    alignment = align(first, second, loaded.profile.align)
    if not alignment.accepted:
        raise click.ClickException(f"{after} cannot be aligned with {before}: {alignment.reason}")
    found = edit_mask(first, second, alignment.homography, alignment.overlap, loaded.profile.mask, "")
    Path(output).write_bytes(encode_png_mask(found.mask, one_bit=False))
    click.echo(f"{output}: {mask_in_words(found)}; {confidence_in_words(found.confidence)}")
    matches = (
        f" with {alignment.inliers} inliers, {alignment.residual_px:.2f} px off" if alignment.inliers else ""
    )
    click.echo(
        f"aligned by {alignment.method}{matches}, over {alignment.overlap_share:.0%} of the picture; "
        f"{confidence_in_words(alignment.confidence)}"
    )
    if overlay:
        write_overlay(overlay, first, found.mask)


@main.command()
@click.argument("shards", nargs=-1, required=True, metavar="SHARD_OR_FOLDER...", type=click.Path(exists=True))
@click.option("--output", required=True, type=click.Path(file_okay=False), help="Folder for the pages.")
@profile_options
def validate(
    shards: tuple[str, ...], output: str, profile: str | None, store: str | None, settings: tuple[str, ...]
) -> None:
    """Draw the overlays of dataset shards (tar files) or extracted folders, to judge masks by eye.

    A page for each under OUTPUT, and OUTPUT/index.html over all. Verdicts saved from a page are read by the
    next build: --set 'shards.verdicts=[verdicts.json]' leaves out what was judged bad.
    """
    loaded = configure(profile, store, settings)
    from .stages.validation_overlays import draw_overlays_of

    paths = [Path(name).absolute() for name in shards]
    if len({path.stem for path in paths}) < len(paths):
        raise click.UsageError("two of these shards have the same name: give each an --output of its own")
    for path in paths:
        click.echo(draw_overlays_of(path, Path(output), loaded.profile))
    click.echo(Path(output) / "index.html")


@main.command()
@click.argument("store_or_folder", required=False)
@click.option("--workers", type=click.IntRange(min=1), default=os.cpu_count() or 1, show_default=True,
              help="Shards read at once.")  # fmt: skip
@profile_options
def verify(
    store_or_folder: str | None, workers: int,
    profile: str | None, store: str | None, settings: tuple[str, ...],
) -> None:  # fmt: skip
    """Read a dataset back, wherever it lies, and say what is broken: shard, sample, bytes.

    STORE_OR_FOLDER is a store, any folder or s3:// prefix with shards (tar files), or an extracted folder;
    without it, the profile's store. Ends with 1 if anything is broken.

    \b
    bananagrams verify s3://bucket/prefix
    bananagrams verify /media/usb/dataset
    """
    loaded = configure(profile, store, settings)
    from .dataset.verify import verify as read_all
    from .storage.open_store import open_store

    verdict = read_all(open_store(store_or_folder or default_store(loaded.profile)), workers, click.echo)
    for fault in verdict.faults:
        click.echo(f"{fault}")
    click.echo(
        f"{verdict.shards} shards, {verdict.samples:,} samples, {verdict.bytes / 1e6:,.1f} MB: "
        + (f"{len(verdict.faults)} faults" if verdict.faults else "nothing is broken")
    )
    if verdict.faults:
        raise SystemExit(1)


@main.command()
@click.option("--photos", type=click.Path(exists=True, file_okay=False),
              help="Folder of photographs; without it, those that come with our dependencies.")  # fmt: skip
@click.option("--count", type=click.IntRange(min=1), help="Pairs to make.")
@click.option("--side", type=click.IntRange(128, 2048), help="Longest side of a made photograph, in px.")
@click.option(
    "--strength",
    "strengths",
    type=click.FloatRange(0, 2),
    multiple=True,
    help="Of the made editor's redrawing, 0 to 2; repeated, pairs take them in turn (with --photos).",
)
@click.option(
    "--output", required=True, type=click.Path(file_okay=False), help="Folder for manifest and pictures."
)
@profile_options
def sample(
    photos: str | None, count: int | None, side: int | None, strengths: tuple[float, ...], output: str,
    profile: str | None, store: str | None, settings: tuple[str, ...],
) -> None:  # fmt: skip
    """Make before/after pairs with exact masks from photographs, as a manifest that `build` takes.

    Where photographs have COCO panoptic labels (NAME.png beside NAME.jpg, and objects.json), their objects
    are edited by name. `evaluate-masks` scores the masks of what this writes.

    \b
    bananagrams sample --photos holiday --count 200 --strength 1 --strength 2 --output pairs
    bananagrams build --manifest pairs/sft.jsonl --store dataset
    """
    if len(strengths) > 1 and not photos:
        raise click.UsageError("the embedded sample has one strength; several need --photos")
    more = {
        "source.sample.pairs": count,
        "source.sample.side_px": side,
        "source.sample.strength": strengths[0] if strengths else None,
    }
    loaded = configure(
        profile, store, settings, {key: value for key, value in more.items() if value is not None}
    )
    from .sample.make import make_sample

    summary = make_sample(
        Path(output), loaded.profile.source.sample, Path(photos) if photos else None, click.echo,
        strengths=strengths,
    )  # fmt: skip
    click.echo(f"{output}/sft.jsonl: {summary['pairs']} pairs; exact masks in {output}/masks")


@main.command("evaluate-masks")
@click.argument("folder", type=click.Path(exists=True, file_okay=False))
@click.option("--output", required=True, type=click.Path(file_okay=False),
              help="Folder for scores.json, pairs.csv and a page of the worst pairs.")  # fmt: skip
@click.option("--workers", type=click.IntRange(min=1), help="Processes; default: one a core.")
@click.option("--worst", type=click.IntRange(min=0), default=24, show_default=True, help="Pairs on the page.")
@profile_options
def evaluate_masks(
    folder: str, output: str, workers: int | None, worst: int,
    profile: str | None, store: str | None, settings: tuple[str, ...],
) -> None:  # fmt: skip
    """Score masks on a folder of pairs with true masks.

    \b
    FOLDER is what `bananagrams sample` wrote, or holds for each pair
      NAME.before.jpg  NAME.after.png  NAME.truth.png  (white where edited, of the before picture's size)
      NAME.json        if more is known: family, strength, edit_type, text, is_global, homography

    \b
    bananagrams sample --photos holiday --count 200 --strength 1 --strength 2 --output pairs
    bananagrams evaluate-masks pairs --output scores
    """
    loaded = configure(profile, store, settings)
    from .console import show_mask_scores
    from .evaluation.mask_evaluation import read_cases, score_folder, summarise_scores, write_evaluation

    cases = read_cases(Path(folder))
    processes = min(workers or os.cpu_count() or 1, len(cases))
    scores = score_folder(cases, loaded.profile, processes, click.echo)
    show_mask_scores(summarise_scores(scores))
    click.echo(f"{write_evaluation(cases, scores, loaded.profile, Path(output), worst)}")


@main.group()
def config() -> None:
    """Settings."""


@config.command("show")
@profile_options
def config_show(profile: str | None, store: str | None, settings: tuple[str, ...]) -> None:
    """Print every effective setting, and where its value comes from."""
    overrides = dict(parse_setting(text) for text in settings)
    if store:
        overrides["store.url"] = store
    loaded = load_profile(profile, overrides)
    click.echo(f"# profile {loaded.name}; store {default_store(loaded.profile)}")
    rows = [
        (f"{path}: {json.dumps(value)}", source_of(path, loaded))
        for path, value in flatten(loaded.profile.model_dump(mode="json"))
    ]
    width = min(80, max(len(left) for left, _ in rows))
    for left, source in rows:
        click.echo(f"{left:{width}}  # {source}")


def read_image(path: str, profile: Profile) -> Any:
    """Decode a picture file; raises PictureError with the file's name."""
    from .vision.images import ImageError, decode

    try:
        return decode(Path(path).read_bytes(), profile.fetch.max_pixels)
    except ImageError as error:
        raise ImageError(f"{path}: {error}") from None


def write_overlay(path: str, image: Any, found: Any) -> None:
    from .vision.images import encode_jpeg
    from .vision.overlay import tinted

    Path(path).write_bytes(encode_jpeg(tinted(image, found, max(image.shape)), 90))
    click.echo(path)


def extract_all(profile: Profile) -> None:
    from .dataset.extract import extract_shard
    from .storage import paths
    from .storage.open_store import open_store

    store = open_store(default_store(profile))
    for shard in profile.shard_keys():
        folder = Path(os.environ["DAGSTER_HOME"]) / "extracted" / shard
        with store.local_path(paths.shard_tar(shard)) as tar:
            count = extract_shard(tar, folder)
        click.echo(f"{folder}: {count} samples")


if __name__ == "__main__":
    main()
