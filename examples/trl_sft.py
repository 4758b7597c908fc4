"""Train a student from a cache with TRL's SFTTrainer. Only the loss and the collator are different.

pip install 'logitcache[trl]'
python examples/trl_sft.py --cache demo-out/train.cache --student demo-out/student-before --out trained
"""

from __future__ import annotations

import argparse
from typing import Any

import torch
from datasets import Dataset
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoModelForCausalLM
from trl import SFTConfig, SFTTrainer

import logitcache as lc


class CacheCollator:
    """Rows of a cache as one padded batch, with the teacher's targets.

    Shape legend: B sequences, T tokens of the longest.
    """

    def __init__(self, cache: lc.Cache) -> None:
        self.cache = cache

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, lc.Batch]:
        sequences = [self.cache[row["sequence"]] for row in rows]
        # Padding on the right doesn't change the values of a causal model.
        input_ids_BT = pad_sequence([sequence.token_ids for sequence in sequences], batch_first=True)
        length = input_ids_BT.shape[1]
        batch = lc.Batch(
            input_ids=input_ids_BT,
            position_ids=torch.arange(length).expand(len(sequences), -1),
            target_index=torch.cat([row * length + s.positions for row, s in enumerate(sequences)]),
            targets=lc.TopK.cat([sequence.targets for sequence in sequences]),
            labels=torch.cat([sequence.labels for sequence in sequences]),
        )
        return {"batch": batch}


class CachedSFTTrainer(SFTTrainer):
    """SFTTrainer whose loss comes from a cache."""

    def __init__(self, *args: Any, cache: lc.Cache, loss: str, **kwargs: Any) -> None:
        super().__init__(*args, data_collator=CacheCollator(cache), **kwargs)
        self.student = lc.losses.loss_model(self.model, loss)  # self.model: with the adapter, if there is one
        self.model_accepts_loss_kwargs = False  # the loss is a mean already
        self.coverage: float | None = None

    def compute_loss(
        self, model: Any, inputs: dict[str, lc.Batch], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        value, seen = self.student(inputs["batch"])
        self.coverage = None if seen.coverage is None else float(seen.coverage)
        return (value, {"loss": value}) if return_outputs else value

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if self.coverage is not None:
            logs = {**logs, "s_ld_coverage": self.coverage}
        super().log(logs, start_time)


def train(cache_path: str, student_path: str, out: str, *, loss: str, steps: int, batch_size: int) -> CachedSFTTrainer:
    """Train and save. Returns the trainer; its ``state.log_history`` holds the losses."""
    cache = lc.open(cache_path)
    rows = Dataset.from_dict({"sequence": list(range(len(cache)))})
    settings = SFTConfig(
        output_dir=out,
        max_steps=steps,
        per_device_train_batch_size=batch_size,
        learning_rate=5e-4,
        lr_scheduler_type="constant",
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        bf16=torch.cuda.is_available(),
        gradient_checkpointing=False,
        # The cache holds tokens and the collator reads them, so TRL must not prepare the data or remove the column.
        dataset_kwargs={"skip_prepare_dataset": True},
        remove_unused_columns=False,
        max_length=None,
    )
    trainer = CachedSFTTrainer(
        model=AutoModelForCausalLM.from_pretrained(student_path, dtype=torch.float32),
        args=settings,
        train_dataset=rows,
        processing_class=cache.load_tokenizer(),
        cache=cache,
        loss=loss,
    )
    trainer.train()
    trainer.save_model(out)
    return trainer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", required=True, help="a cache's directory or URL")
    parser.add_argument("--student", required=True, help="a model's directory or hub id")
    parser.add_argument("--out", required=True)
    parser.add_argument("--loss", default="bild", help="a loss or a mix, such as bild=1.0,cross_entropy=0.1")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--batch-size", type=int, default=4)
    options = parser.parse_args()
    sizes = {"steps": options.steps, "batch_size": options.batch_size}
    train(options.cache, options.student, options.out, loss=options.loss, **sizes)


if __name__ == "__main__":
    main()
