"""`LesionLogs`: the confusion of lesion types, and every lesion of the inner validation with what became of it."""

from __future__ import annotations

from collections import Counter

import pandas as pd
import pytorch_lightning as pl

from lesionseg.callbacks.loggers import wandb_run
from lesionseg.callbacks.results import lesion_table
from lesionseg.metrics import LesionFigures
from lesionseg.results import REFERENCE

#: Column of a confusion for the reference lesions that were not found.
_MISSED = "missed"
#: Rows of the lesion table, largest lesions first.
MOST_ROWS = 300


class LesionLogs(pl.Callback):
    """After every validation: `val/confusion/<type>/<predicted type or missed>`, and the lesion table to W&B.

    The table is HTML: a `wandb.Table` goes by a file whose full path W&B keeps in its log.
    """

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Before the task resets its metric; the rows of all processes are gathered."""
        metric = pl_module.get_submodule("validation_metric")
        if trainer.state.fn != "fit" or not isinstance(metric, LesionFigures):
            return
        data = trainer.datamodule  # type: ignore[attr-defined]
        table = lesion_table(metric, data, data.validation)
        counts = confusion_counts(table, metric.lesion_types)
        pl_module.log_dict({f"val/confusion/{k}": float(n) for k, n in counts.items()}, rank_zero_only=True)
        run = wandb_run(trainer)
        if run is not None:
            import wandb

            run.log({"val/lesions": wandb.Html(as_html(table)), "trainer/global_step": trainer.global_step})


def confusion_counts(table: pd.DataFrame, types: tuple[str, ...]) -> dict[str, int]:
    """`true/predicted` → reference lesions of a lesion table; `missed` stands for those not found."""
    reference = table[table.kind == REFERENCE]
    seen = Counter(zip(reference.type, reference.predicted_type.replace("", _MISSED), strict=True))
    return {f"{true}/{predicted}": seen[true, predicted] for true in types for predicted in (*types, _MISSED)}


def as_html(table: pd.DataFrame) -> str:
    """A lesion table for a dashboard, largest lesions first."""
    shown = table.assign(hit=table.found.map({1: "hit", 0: "miss"})).sort_values("area_px", ascending=False)
    shown.loc[shown.kind != REFERENCE, "hit"] = "false positive"
    columns = ["hit", "type", "predicted_type", "area_px", "area_mm2", "overlap", "patient_id", "lesion_id"]
    return f"<p>{min(len(shown), MOST_ROWS)} of {len(shown)}</p>" + shown[columns].head(MOST_ROWS).to_html(
        index=False, float_format="{:.2f}".format, na_rep="", border=0
    )
