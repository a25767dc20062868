"""The obvious way to a private step on the encoder, as one would write it in a day.

PEFT's LoRA on the whole BERT, Opacus's `GradSampleModule` around it, every text of every user
in one padded forward pass in float32, the per-text gradients that Opacus keeps added up by
user, clipped and summed. Same users, histories, targets, negatives and loss as ours. It runs on the
device that is named; the catalogue is tokenised once.
"""

from __future__ import annotations

import warnings

import numpy as np
import torch
from opacus.grad_sample import GradSampleModule
from peft import LoraConfig, get_peft_model
from peft.utils import set_peft_model_state_dict
from torch import Tensor, nn

from fedrec.model import Arrays
from fedrec.model.encoder import TARGETS
from fedrec.model.encoder_files import encoder_folder
from fedrec.model.pretrained import load_bert
from fedrec.objectives.examples import Examples
from fedrec.training.sampled import SampledLoss, layout

__all__ = ["Obvious"]


class _Pooled(nn.Module):
    """Token ids to the mean of the last hidden states."""

    def __init__(self, bert: nn.Module) -> None:
        super().__init__()
        self.bert = bert

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        hidden = self.bert(input_ids=ids, attention_mask=mask).last_hidden_state
        weights = mask[:, :, None].float()
        return (hidden * weights).sum(1) / weights.sum(1)


class Obvious:
    """Per-user gradients of the LoRA `B` matrices, and the table of a catalogue."""

    def __init__(
        self, name: str, layers: int, arrays: Arrays, texts: tuple[str, ...], rank: int, max_tokens: int, device: torch.device
    ) -> None:
        bert, self.tokenizer = load_bert(encoder_folder(name))
        count = int(bert.config.num_hidden_layers)
        top = list(range(count - layers, count))
        lora = LoraConfig(r=rank, lora_alpha=rank, lora_dropout=0.0, target_modules=list(TARGETS), layers_to_transform=top)
        model = get_peft_model(bert, lora)
        names = {key for key in arrays if "lora_" in key}
        set_peft_model_state_dict(model, {key: torch.tensor(arrays[key]) for key in names})
        for key, parameter in model.named_parameters():
            parameter.requires_grad_("lora_B" in key)
        self.texts, self.max_tokens, self.device = texts, max_tokens, device
        self.ids, self.mask = self.tokenise()
        self.length = self.mask.sum(1).cpu().numpy()
        self.module = GradSampleModule(_Pooled(model).train().to(device), loss_reduction="sum", strict=False)
        for module in self.module.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0  # as in ours: the gradients are to be equal

    def tokenise(self) -> tuple[Tensor, Tensor]:
        """The catalogue's token ids and their mask on the device, both (texts, tokens)."""
        encoded = self.tokenizer(  # type: ignore[operator]
            list(self.texts), truncation=True, max_length=self.max_tokens, padding=True, return_tensors="pt"
        )
        return encoded["input_ids"].to(self.device), encoded["attention_mask"].to(self.device)

    def padded(self, texts: np.ndarray) -> tuple[Tensor, Tensor]:
        """Token ids and mask of some texts, both (texts, tokens), padded to the longest of them."""
        longest, rows = int(self.length[texts].max()), torch.as_tensor(texts, device=self.device)
        return self.ids[rows, :longest], self.mask[rows, :longest]

    def gradients(self, chunk: Examples, negatives: np.ndarray, history: int, loss: SampledLoss) -> list[Tensor]:
        """Each user's gradient, one tensor (users, out, rank) a parameter; the loss is the very same."""
        pairs = layout(chunk, history)
        texts = np.concatenate([pairs.text, np.tile(negatives, len(chunk))])
        record = torch.as_tensor(np.concatenate([pairs.record, np.repeat(np.arange(len(chunk)), len(negatives))]))
        record = record.to(self.device)
        with warnings.catch_warnings():
            # What enters the first layer is data, so it has no gradient; torch warns of that.
            warnings.filterwarnings("ignore", message="Full backward hook is firing")
            pooled = self.module(*self.padded(texts))
            own, shared = pooled[: len(pairs.text)], pooled[len(pairs.text) :].view(len(chunk), len(negatives), -1)
            loss.losses(own, shared, pairs, chunk, negatives).sum().backward()
        out = []
        for parameter in self.module.parameters():
            if parameter.requires_grad:
                samples = parameter.grad_sample  # (texts, out, rank)
                out.append(samples.new_zeros(len(chunk), *samples.shape[1:]).index_add_(0, record, samples))
        self.module.zero_grad(set_to_none=True)
        return out

    @torch.no_grad()
    def table(self, batch: int) -> Tensor:
        """Pooled vectors of the whole catalogue, (texts, hidden)."""
        out = []
        for start in range(0, len(self.texts), batch):
            out.append(self.module(*self.padded(np.arange(start, min(start + batch, len(self.texts))))))
        return torch.cat(out)
