"""What the papers say: tables of data, and the arithmetic on them. Never imports torch."""
