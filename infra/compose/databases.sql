-- Beside `optuna`, which the image makes itself.
CREATE DATABASE mlflow;
