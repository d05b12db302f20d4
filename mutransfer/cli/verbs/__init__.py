"""One module per verb, each with `run(composer, arguments) -> exit code`."""
