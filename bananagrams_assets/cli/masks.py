"""Commands that make, score and compute masks outside a dataset."""

from __future__ import annotations

from pathlib import Path

import click

from .console import confidence_in_words, mask_in_words, show_mask_scores
from .images import read_image, write_overlay
from .options import CORES, ProfileChoice, profile_options


@click.command()
@click.argument("before", type=click.Path(exists=True, dir_okay=False))
@click.argument("after", type=click.Path(exists=True, dir_okay=False))
@click.option("--output", required=True, type=click.Path(dir_okay=False),
              help="PNG file for the mask (255: edited).")  # fmt: skip
@click.option("--overlay", type=click.Path(dir_okay=False),
              help="JPEG file for the mask drawn over the photo.")  # fmt: skip
@profile_options
def mask(before: str, after: str, output: str, overlay: str | None, choice: ProfileChoice) -> None:
    """Align AFTER with BEFORE and compute the mask of the edit.

    \b
    bananagrams mask before.jpg after.png --output mask.png --overlay overlay.jpg
    """
    loaded = choice.load()
    for path in (output, overlay):
        if path and not Path(path).absolute().parent.is_dir():
            raise click.ClickException(f"{path} cannot be written: its folder does not exist")
    from ..vision.align import align
    from ..vision.images import encode_png_mask
    from ..vision.mask import edit_mask

    photo, edited = (read_image(path, loaded.profile) for path in (before, after))
    alignment = align(photo, edited, loaded.profile.align)
    if not alignment.accepted:
        raise click.ClickException(f"{after} cannot be aligned with {before}: {alignment.reason}")
    result = edit_mask(photo, edited, alignment.homography, alignment.overlap, loaded.profile.mask, "")
    Path(output).write_bytes(encode_png_mask(result.mask, one_bit=False))
    click.echo(f"{output}: {mask_in_words(result)}; {confidence_in_words(result.confidence)}")
    matches = (
        f" with {alignment.inliers} inliers, residual {alignment.residual_px:.2f} px"
        if alignment.inliers
        else ""
    )
    click.echo(
        f"aligned by {alignment.method}{matches}, over {alignment.overlap_share:.0%} of the image; "
        f"{confidence_in_words(alignment.confidence)}"
    )
    if overlay:
        write_overlay(overlay, photo, result.mask)


@click.command()
@click.option("--photos", type=click.Path(exists=True, file_okay=False),
              help="Folder of photos; default: the photos that ship with the dependencies.")  # fmt: skip
@click.option("--count", type=click.IntRange(min=1), help="Number of pairs to make.")
@click.option("--side", type=click.IntRange(128, 2048), help="Longest side of a made image, in px.")
@click.option(
    "--strength", "strengths", type=click.FloatRange(0, 2), multiple=True,
    help="Strength of the re-synthesis by the simulated editor, 0 to 2. Repeat it to alternate between "
         "several strengths (with --photos).",
)  # fmt: skip
@click.option("--output", required=True, type=click.Path(file_okay=False),
              help="Folder for manifest and images.")  # fmt: skip
@profile_options
def sample(
    photos: str | None,
    count: int | None,
    side: int | None,
    strengths: tuple[float, ...],
    output: str,
    choice: ProfileChoice,
) -> None:
    """Make before/after pairs with exact masks from photos, as a manifest that `build` reads.

    Photos with COCO panoptic labels (NAME.png beside NAME.jpg, and objects.json) have their objects edited by
    name. `evaluate-masks` scores masks on the result.

    \b
    bananagrams sample --photos holiday --count 200 --strength 1 --strength 2 --output pairs
    bananagrams build --manifest pairs/sft.jsonl --store dataset
    """
    if len(strengths) > 1 and not photos:
        raise click.UsageError("the embedded sample has one strength; several need --photos")
    overrides = {
        "source.sample.pairs": count,
        "source.sample.side_px": side,
        "source.sample.strength": strengths[0] if strengths else None,
    }
    given = {key: value for key, value in overrides.items() if value is not None}
    loaded = choice.load(overrides=given)
    from ..sample.sample_folder import make_sample

    summary = make_sample(
        Path(output), loaded.profile.source.sample, Path(photos) if photos else None, click.echo,
        strengths=strengths,
    )  # fmt: skip
    click.echo(f"{output}/sft.jsonl: {summary['pairs']} pairs; exact masks in {output}/masks")


@click.command("evaluate-masks")
@click.argument("folder", type=click.Path(exists=True, file_okay=False))
@click.option("--output", required=True, type=click.Path(file_okay=False),
              help="Folder for scores.json, pairs.csv and a page of the worst pairs.")  # fmt: skip
@click.option("--workers", type=click.IntRange(min=1), help="Processes; default: one for each core.")
@click.option("--worst", type=click.IntRange(min=0), default=24, show_default=True, help="Pairs on the page.")
@profile_options
def evaluate_masks(folder: str, output: str, workers: int | None, worst: int, choice: ProfileChoice) -> None:
    """Score masks on a folder of pairs with true masks.

    \b
    FOLDER is the output of `bananagrams sample`, or holds for each pair
      NAME.before.jpg  NAME.after.png  NAME.truth.png  (white where edited, of the before image's size)
      NAME.json        optional: family, strength, edit_type, text, is_global, homography

    \b
    bananagrams sample --photos holiday --count 200 --strength 1 --strength 2 --output pairs
    bananagrams evaluate-masks pairs --output scores
    """
    loaded = choice.load()
    from ..evaluation.cases import read_cases
    from ..evaluation.mask_evaluation import score_folder, summarise_scores
    from ..evaluation.scores_page import write_evaluation

    cases = read_cases(Path(folder))
    processes = min(workers or CORES, len(cases))
    scores = score_folder(cases, loaded.profile, processes, click.echo)
    show_mask_scores(summarise_scores(scores))
    click.echo(f"{write_evaluation(cases, scores, loaded.profile, Path(output), worst)}")
