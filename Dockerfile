# The slim image has no C compiler: the profiles are compiled in the one that has.
FROM python:3.11.14-bookworm AS compiler
WORKDIR /redflag
COPY requirements.txt requirements-build.txt pyproject.toml ./
RUN pip install --no-cache-dir --disable-pip-version-check -r requirements.txt -r requirements-build.txt
COPY dataflow ./dataflow
RUN python -m dataflow.compile

FROM python:3.11.14-slim-bookworm

ENV PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1
WORKDIR /redflag

COPY requirements.txt ./
RUN pip install --no-cache-dir --disable-pip-version-check -r requirements.txt

COPY --from=compiler /redflag/dataflow ./dataflow
COPY training ./training

# A model to start with; mount another and name it in MODEL_FILE. The recovery directory is a volume's mount point, so
# it must belong to the user that runs the flow: a new volume takes that over.
RUN useradd --system --uid 10001 redflag \
    && python -m training.train --out fraud_model.pkl \
    && install --directory --owner=redflag --mode=0700 /recovery

USER redflag
VOLUME /recovery
CMD ["python", "-m", "dataflow.detect"]
