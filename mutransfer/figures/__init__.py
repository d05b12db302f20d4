"""Numbers in, figures out: pure functions of what JSON files hold. The only place that imports matplotlib."""
