"""Training as Lightning sees it: module, progress, scores, figures and MLflow."""
