import pytest

from sweeps.redact import redact


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("postgresql://ann:s3cret@db:5432/optuna", "postgresql://***@db:5432/optuna"),
        ("postgresql+psycopg://ann:a@b/c@db/x", "postgresql+psycopg://***@db/x"),
        ("https://token@mlflow.example/api", "https://***@mlflow.example/api"),
        ("http://host:5000/runs/a@b", "http://host:5000/runs/a@b"),
        ("sqlite:////data/runs/mlflow.db", "sqlite:////data/runs/mlflow.db"),
        (
            "mysql://db/x?user=ann&password=s3cret&ssl=1",
            "mysql://db/x?user=ann&password=***&ssl=1",
        ),
        (
            "GET https://bucket/key?X-Amz-Signature=abc failed",
            "GET https://bucket/key?X-Amz-Signature=*** failed",
        ),
        ("API request to 'http://u:p@h/api' failed", "API request to 'http://***@h/api' failed"),
        ("no URL, but a@b.c and a: b", "no URL, but a@b.c and a: b"),
    ],
)
def test_credentials_leave_and_the_rest_stays(text: str, expected: str) -> None:
    assert redact(text) == expected
