"""A BERT with LoRA in its top layers, and the frozen trunk below them.

The encoder is split at the first layer that carries LoRA. Below is the trunk: run once for
a text, then cached. Above are the top layers, the only ones that training and evaluation
run. With no encoder LoRA the trunk is the whole encoder and pooling, and the cache holds
one vector for a text.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import lru_cache
from pathlib import Path
from typing import TypeVar, cast
from weakref import WeakKeyDictionary

import numpy as np
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import BertModel

from fedrec.config import cache_root
from fedrec.data import Catalogue
from fedrec.errors import InputError
from fedrec.model.adapter import Arrays, digest
from fedrec.model.cache import States, TrunkCache
from fedrec.model.devices import Resident, moved
from fedrec.model.encoder_files import PACKAGED, encoder_folder, files_digest, files_seen
from fedrec.model.pretrained import load_bert, tokenizer_identity
from fedrec.model.shapes import Shapes

__all__ = ["PACKAGED", "TARGETS", "TextEncoder", "cache_folder", "encoders_apart", "load_encoder", "resolve_device"]

TARGETS = ("query", "value")
"""The linear maps of a layer that carry LoRA."""
EMBEDDED = 32
"""How many catalogues' embeddings a process keeps, and how many merchants' of what users wrote."""
PRIVATE = 50_000
"""Most texts of users whose states a process keeps, those of the last merchant's in any case."""
_of_this_thread = threading.local()
Key = TypeVar("Key")


def cache_folder() -> Path:
    """Where trunk caches live.

    Raises:
        InputError: see `cache_root`.
    """
    return cache_root() / "trunk"


def resolve_device(name: str) -> torch.device:
    """`auto` is CUDA where there is one. A GPU with a number becomes the process's own: what names none, such as pinned memory
    and the recording of graphs, is then on it.

    Raises:
        InputError: torch knows no such device, or it is not there.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
        if device.type == "cuda" and device.index is not None:
            torch.cuda.set_device(device)
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"device {name!r} cannot be used ({str(error).splitlines()[0]})", where="device") from None
    return device


def load_encoder(
    name: str = PACKAGED, layers: int = 1, rank: int = 8, max_tokens: int = 48, device: str = "auto", texts_per_batch: int = 128
) -> TextEncoder:
    """The encoder for these settings; one a process, shared by all merchants in it, until its files change. See `encoders_apart`.

    Raises:
        InputError: the model or its tokenizer is not whole (`load_bert`), has too few layers or positions, or is narrower
            than `rank`.
    """
    folder = encoder_folder(name)
    load: Callable[..., TextEncoder] = getattr(_of_this_thread, "load", _load)
    return load(folder.resolve(), files_seen(folder), layers, rank, max_tokens, device, texts_per_batch)


@contextmanager
def encoders_apart() -> Iterator[None]:
    """In this block the thread has encoders of its own: to set the LoRA of a shared one changes what another thread encodes."""
    _of_this_thread.load = lru_cache(maxsize=4)(_load.__wrapped__)
    try:
        yield
    finally:
        del _of_this_thread.load


@lru_cache(maxsize=4)
def _load(
    folder: Path, _seen: tuple[object, ...], layers: int, rank: int, max_tokens: int, device: str, texts_per_batch: int
) -> TextEncoder:
    files = files_digest(folder)
    bert, tokenizer = load_bert(folder)
    for found, setting, most, what in (
        (layers, "encoder_layers", bert.config.num_hidden_layers, "layers"),
        (rank if layers else 0, "encoder_rank", bert.config.hidden_size, "width"),
        (max_tokens, "max_tokens", bert.config.max_position_embeddings, "positions"),
    ):
        if found > most:
            raise InputError(f"found {found}", where=setting, expected=f"at most {most}, the {what} of {folder}")
    return TextEncoder(bert, tokenizer, layers, rank, max_tokens, resolve_device(device), texts_per_batch, files)


class TextEncoder(nn.Module):
    """Texts to mean-pooled vectors, with LoRA (A frozen) in the top `layers` layers.

    Attributes:
        fingerprint: of the frozen weights, the tokenizer, where the trunk ends and where texts are cut: encoders with
            one fingerprint give one output.
        files: `files_digest` of what it was loaded from, empty where that is not known.
    """

    def __init__(
        self,
        bert: BertModel,
        tokenizer: object,
        layers: int,
        rank: int,
        max_tokens: int,
        device: torch.device,
        texts_per_batch: int,
        files: str = "",
    ) -> None:
        super().__init__()
        self.tokenizer, self.max_tokens = tokenizer, max_tokens
        self.device, self.layers = device, layers
        self.hidden = int(bert.config.hidden_size)
        self.boundary = int(bert.config.num_hidden_layers) - layers
        self.base_size = sum(value.nbytes for value in bert.parameters())
        self.fingerprint, self.files = _fingerprint(bert, tokenizer, self.boundary, max_tokens), files
        bert.requires_grad_(False)
        self._embedded: dict[tuple[str, str], Tensor] = {}
        self._written: dict[tuple[tuple[str, ...], str], Tensor] = {}
        self._private: dict[tuple[str, ...], States] = {}
        self._cache: TrunkCache | None = None
        self._resident: WeakKeyDictionary[States, Resident | None] = WeakKeyDictionary()
        self.peft: PeftModel | None = None
        if layers:
            top = list(range(self.boundary, self.boundary + layers))
            lora = LoraConfig(
                r=rank, lora_alpha=rank, lora_dropout=0.0, target_modules=list(TARGETS), layers_to_transform=top, bias="none"
            )
            self.peft = cast(PeftModel, get_peft_model(bert, lora))
        self.bert = bert
        self.eval().to(device)
        for name, parameter in self.named_parameters():
            parameter.requires_grad_("lora_B" in name)
        # PEFT's own way to its state dict reads the model's configuration each time, which takes longer than a small round.
        named = self.peft.named_parameters() if self.peft is not None else ()
        self._lora = {name.replace(".default.", "."): parameter for name, parameter in named if "lora_" in name}
        # bf16 halves a step where the processor multiplies it in hardware, and doubles it where not.
        self.low_precision = device.type == "cuda" or bool(torch.cpu._is_avx512_bf16_supported())
        self.shapes = Shapes(texts_per_batch, int(bert.config.max_position_embeddings), fixed=device.type == "cuda")

    def check_fingerprint(self, expected: str) -> None:
        """Whether this is the encoder that something was made with; a run from before they were kept has none.

        Raises:
            InputError: it is another one.
        """
        if expected not in ("", self.fingerprint):
            raise InputError(
                "its weights, its tokenizer or max_tokens are not those that the run was made with", where="encoder",
                expected=f"the fingerprint {expected}, found {self.fingerprint}", hint="put the files back, or start a new run",
            )  # fmt: skip

    @property
    def training_dtype(self) -> torch.dtype:
        """Of the products in training: on a processor how a text is rounded in bf16 depends on how many are beside it."""
        return torch.bfloat16 if self.low_precision and self.device.type != "cpu" else torch.float32

    def moved(self, values: np.ndarray) -> Tensor:
        """An array on the encoder's device."""
        return moved(values, self.device)

    @property
    def top(self) -> nn.ModuleList:
        """The layers above the trunk."""
        return self.bert.encoder.layer[self.boundary :]

    def trained(self) -> Arrays:
        """The LoRA `B` matrices under PEFT's names, float32 (out, rank)."""
        return self._arrays("lora_B")

    def frozen(self) -> Arrays:
        """The LoRA `A` matrices under PEFT's names, float32 (rank, in)."""
        return self._arrays("lora_A")

    def load(self, arrays: Arrays) -> None:
        """Set LoRA matrices by PEFT's names; names that are not the encoder's are ignored.

        Raises:
            ValueError: a matrix has another shape than the encoder's.
        """
        for name in self._lora.keys() & arrays.keys():
            if arrays[name].shape != self._lora[name].shape:
                raise ValueError(f"{name}: expected shape {tuple(self._lora[name].shape)}, found {arrays[name].shape}")
        with torch.no_grad():
            for name in self._lora.keys() & arrays.keys():
                self._lora[name].copy_(torch.tensor(arrays[name]))

    def save_peft(self, folder: Path) -> None:
        """Write the LoRA so that `peft.PeftModel.from_pretrained` opens it."""
        if self.peft is not None:
            self.peft.save_pretrained(str(folder))

    def states(self, catalogue: Catalogue, cache: TrunkCache | None = None) -> States:
        """The trunk's output for a catalogue's texts, from the cache where it is there."""
        if cache is None:
            folder = cache_folder()
            if self._cache is None or self._cache.folder.parent != folder:
                self._cache = TrunkCache(folder, self.fingerprint)
            cache = self._cache
        return cache.states(catalogue.texts, catalogue.keys, self._trunk)

    def pooled(self, states: States, texts: np.ndarray | None = None) -> Tensor:
        """Mean-pooled output of the top layers, float32 of shape (texts, hidden), with no graph."""
        texts = np.arange(len(states)) if texts is None else texts
        out = torch.empty(len(texts), self.hidden, device=self.device)
        with torch.no_grad():
            for rows in self.shapes.batches(states.length[texts], self._times):
                out.index_copy_(0, self.moved(rows), self.run_top(*self.gather(states, texts[rows])))
        return out

    def encode(self, texts: Sequence[str]) -> Tensor:
        """Pooled vectors of passing texts, such as queries, that no cache should keep: (texts, hidden)."""
        return self.pooled(States.of(list(self._trunk(texts))))

    def private_states(self, texts: Sequence[str]) -> States:
        """The trunk's output for what users wrote: in no cache on disk, and each as if there were no other text.

        Who else searched for what must not change how one user's gradient is rounded, so every text goes through alone, padded
        by its own length and in float32. The last ones asked for stay in this process's memory.
        """
        key = tuple(texts)
        if key not in self._private:
            self._private[key] = States.of([row for text in texts for row in self._trunk([text], exact=True)])
            while len(self._private) > 1 and sum(map(len, self._private.values())) > PRIVATE:
                self._private.pop(next(iter(self._private)))
        return self._private[key]

    def embed_private(self, texts: Sequence[str]) -> Tensor:
        """`pooled` for what users wrote, each text alone and in float32: (texts, hidden). Remembered as `embed` does."""
        if not texts:
            return torch.empty(0, self.hidden, device=self.device)
        key = (tuple(texts), digest({**self.frozen(), **self.trained()}))
        if key not in self._written:
            states, found = self.private_states(texts), torch.empty(len(texts), self.hidden, device=self.device)
            with torch.no_grad():
                for text, length in enumerate(states.length):
                    rows, _ = states.padded(np.array([text]), int(self.shapes.padded(length)))
                    mask = self.moved(np.arange(rows.shape[1])[None] < length)
                    found[text] = self.run_top(self.moved(rows).float(), mask, exact=True)[0]
            _remember(self._written, key, found)
        return self._written[key]

    def read_until(self, text: str) -> int:
        """How many characters of a text are taken in before it is cut at `max_tokens`."""
        if not self.tokenizer.is_fast:  # type: ignore[attr-defined]
            return len(text)  # one of Python's own does not say which characters a token is
        encoded = self.tokenizer(text, truncation=True, max_length=self.max_tokens, return_offsets_mapping=True)  # type: ignore[operator]
        return max((end for _, end in encoded["offset_mapping"]), default=0)

    def embed(self, catalogue: Catalogue) -> Tensor:
        """`pooled` for a whole catalogue; remembered until the LoRA changes, for the last catalogues used."""
        key = (catalogue.digest, digest({**self.frozen(), **self.trained()}))
        if key not in self._embedded:
            _remember(self._embedded, key, self.pooled(self.states(catalogue)))
        return self._embedded[key]

    @property
    def _times(self) -> int:
        """How much larger than in training a batch may be that nothing is kept of."""
        return 4 if self.shapes.fixed else 1

    def batches(self, lengths: np.ndarray) -> Iterator[np.ndarray]:
        """Rows in batches of one padded length, for a pass that keeps nothing: see `Shapes`."""
        yield from self.shapes.batches(lengths)

    def gather(self, states: States, texts: np.ndarray) -> tuple[Tensor, Tensor]:
        """Padded hidden states (texts, tokens, hidden) float32 and the mask of real tokens (texts, tokens)."""
        tokens = int(self.shapes.padded(states.length[texts]).max())
        if self.shapes.fixed:
            if states not in self._resident:
                held = sum(one.rows.nbytes for one in self._resident.values() if one is not None)
                self._resident[states] = Resident.of(states, self.device, held)
            if (resident := self._resident[states]) is not None:
                return resident.padded(self.moved(texts), tokens)
        padded, lengths = states.padded(texts, tokens)
        return self.moved(padded).float(), self.moved(np.arange(tokens) < lengths[:, None])

    def run_top(self, hidden: Tensor, mask: Tensor, exact: bool = False) -> Tensor:
        """Top layers, then the mean over real tokens: (texts, tokens, hidden) to (texts, hidden) float32.

        Args:
            exact: compute in float32 whatever the device is good at.
        """
        low = self.low_precision and self.layers > 0 and not exact
        with torch.autocast(self.device.type, torch.bfloat16, enabled=low), self._attention():
            for layer in self.top:
                hidden = layer(hidden, mask[:, None, None, :])
        return _mean(hidden.float(), mask)

    def _attention(self) -> AbstractContextManager[None]:
        """Plain products where gradients are asked for, not fused attention.

        Its backward takes half of a step on a processor at these lengths.
        """
        if torch.is_grad_enabled():
            return sdpa_kernel(SDPBackend.MATH)
        return nullcontext()

    def layer_inputs(self, states: States) -> dict[str, Tensor]:
        """Second moments of what enters each LoRA, (in, in) a module, by the name of its `A`.

        Their top eigenvectors are the principal directions of the activations over a public
        catalogue, the frozen A of choice.
        """
        moments: dict[str, Tensor] = {}

        real: list[Tensor] = []

        def watch(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
            def hook(_module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
                x = inputs[0].float()[real[-1]]  # (tokens, in), without padding
                moments[name] = moments.get(name, 0) + x.T @ x

            return hook

        names = {key: key.removesuffix(".weight").removeprefix("base_model.model.") for key in self.frozen()}
        handles = [
            self.bert.get_submodule(f"{module}.default").register_forward_pre_hook(watch(key)) for key, module in names.items()
        ]
        try:
            with torch.no_grad():
                for rows in self.batches(states.length):
                    hidden, mask = self.gather(states, rows)
                    real.append(mask)
                    self.run_top(hidden, mask)
        finally:
            for handle in handles:
                handle.remove()
        return moments

    def _arrays(self, kind: str) -> Arrays:
        return {name: value.detach().float().cpu().numpy().copy() for name, value in self._lora.items() if kind in name}

    def _trunk(self, texts: Sequence[str], exact: bool = False) -> Iterator[np.ndarray]:
        """Hidden states that enter the top layers, one (tokens, hidden) array a text, in order; `exact` as in `run_top`."""
        encoded = self.tokenizer(list(texts), truncation=True, max_length=self.max_tokens)["input_ids"]  # type: ignore[operator]
        lengths = np.array([len(ids) for ids in encoded])
        out: list[np.ndarray] = [np.empty(0)] * len(texts)
        with torch.no_grad():
            for rows in self.shapes.batches(lengths, self._times):
                inside = np.arange(self.shapes.padded(lengths[rows]).max()) < lengths[rows][:, None]
                padded = np.zeros(inside.shape, dtype=np.int64)
                padded[inside] = np.concatenate([encoded[i] for i in rows])
                ids, mask = torch.from_numpy(padded).to(self.device), torch.from_numpy(inside).to(self.device)
                hidden = self.bert.embeddings(ids)  # (texts, tokens, hidden)
                with torch.autocast(self.device.type, torch.bfloat16, enabled=self.low_precision and not exact):
                    for layer in self.bert.encoder.layer[: self.boundary]:
                        hidden = layer(hidden, mask[:, None, None, :])
                if self.layers:
                    real, ends = hidden.half()[mask], np.cumsum(lengths[rows])  # (tokens, hidden)
                else:
                    real, ends = _mean(hidden.float(), mask).half(), np.arange(len(rows)) + 1
                for i, row in zip(rows, np.split(real.cpu().numpy(), ends[:-1]), strict=True):
                    out[i] = row
        yield from out


def _remember(known: dict[Key, Tensor], key: Key, found: Tensor) -> None:
    known[key] = found
    while len(known) > EMBEDDED:
        known.pop(next(iter(known)))


def _mean(hidden: Tensor, mask: Tensor) -> Tensor:
    weights = mask.to(hidden.dtype)
    return torch.einsum("nth,nt->nh", hidden, weights) / weights.sum(1, keepdim=True)


def _fingerprint(bert: BertModel, tokenizer: object, boundary: int, max_tokens: int) -> str:
    state = hashlib.blake2b(f"{boundary}/{max_tokens}/float16".encode(), digest_size=12)
    state.update(tokenizer_identity(tokenizer))
    for name, value in sorted(bert.state_dict().items()):
        state.update(name.encode())
        state.update(value.detach().cpu().contiguous().numpy())
    return state.hexdigest()
