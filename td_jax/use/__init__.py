"""From a finished run to a model in use: predictions, exports, costs."""
