"""One run: its config, plan, folder, teachers and loop."""
