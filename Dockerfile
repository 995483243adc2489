FROM python:3.11.14-slim-bookworm

# Machine code for any processor of this kind: the image may run on another than the one that it was built on.
ENV PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1 NUMBA_CPU_NAME=generic
WORKDIR /redflag

COPY requirements.txt ./
RUN pip install --no-cache-dir --disable-pip-version-check -r requirements.txt

COPY dataflow ./dataflow
COPY training ./training
COPY console ./console

# Files of a clone that only its owner can read (umask 077) are copied as such: the flow's user must read them.
# The profiles' kernels, compiled once for all starts. A model to start with; mount another and name it in MODEL_FILE.
# The directories of recovery, of the console and of the rules that both share are volumes' mount points, so they must
# belong to the user that runs the flow: a new volume takes that over.
RUN useradd --system --uid 10001 redflag \
    && chmod --recursive a+rX . \
    && python -m dataflow.kernels \
    && python -m training.train --out fraud_model.pkl \
    && install --directory --owner=redflag --mode=0700 /recovery /console-data /rules

# Where the kernels lie can only be read: a start copies them (12 MB) to here (see dataflow/profiles/compilation.py).
ENV XDG_CACHE_HOME=/tmp/cache
USER redflag
VOLUME /recovery
CMD ["python", "-m", "dataflow.detect"]
