"""Merchant folders, federation folders and basket histories."""

from fedrec.data.catalogue import Catalogue, text_key
from fedrec.data.details import ItemDetails
from fedrec.data.folders import CentralData, CentralGroup, MerchantData, load_central, load_merchant, merchant_folders
from fedrec.data.histories import Histories
from fedrec.data.rows import LeftOut
from fedrec.data.schema import Columns
from fedrec.data.source import DataSource

__all__ = [
    "Catalogue",
    "CentralData",
    "CentralGroup",
    "Columns",
    "DataSource",
    "Histories",
    "ItemDetails",
    "LeftOut",
    "MerchantData",
    "load_central",
    "load_merchant",
    "merchant_folders",
    "text_key",
]
