from flame.sdk import connect as connect

__version__: str
