"""Why an item is in a list: exact shares of its score, who stands behind them, what may be told, the words of its text."""

from __future__ import annotations

from fedrec.recommender.reasons.reasons import Reasons, Share, Told, reasons_of
from fedrec.recommender.reasons.shares import Customers, Shares
from fedrec.recommender.reasons.words import Words, words_of

__all__ = ["Customers", "Reasons", "Share", "Shares", "Told", "Words", "reasons_of", "words_of"]
