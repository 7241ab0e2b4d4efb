from .bapps import BAPPS as BAPPS
from .datamodule import ImageData as ImageData
from .names import PUBLISHED as PUBLISHED
from .sources import SOURCES as SOURCES
