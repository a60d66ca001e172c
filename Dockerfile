# docker build -t ragvl .
# docker run --rm -p 8000:8000 ragvl                       # the tiny model that comes with ragvl
# docker run --rm -p 8000:8000 -v models:/models -v cache:/cache ragvl /models/reranker --cache /cache
#
# For a CPU; for a GPU --build-arg TORCH_INDEX=https://pypi.org/simple --build-arg EXTRAS=serve,gpu,triton

FROM python:3.11-slim-bookworm AS build
RUN apt-get update && apt-get install --yes --no-install-recommends g++ && rm -rf /var/lib/apt/lists/*
WORKDIR /source
COPY constraints.txt ./
ENV PIP_CONSTRAINT=/source/constraints.txt PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1
RUN python -m venv /opt/ragvl
ENV PATH=/opt/ragvl/bin:$PATH
# torch by itself: it is large and seldom another, so that this layer is kept from build to build
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
RUN pip install --extra-index-url $TORCH_INDEX torch
COPY . .
ARG EXTRAS=serve,cpu
RUN pip install --extra-index-url $TORCH_INDEX ".[$EXTRAS]"

FROM python:3.11-slim-bookworm
# torch's CPU kernels need OpenMP
RUN apt-get update && apt-get install --yes --no-install-recommends libgomp1 \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --create-home --uid 1000 ragvl && install --directory --owner=ragvl /cache
COPY --from=build /opt/ragvl /opt/ragvl
ENV PATH=/opt/ragvl/bin:$PATH PYTHONUNBUFFERED=1
USER ragvl
WORKDIR /home/ragvl
VOLUME /cache
EXPOSE 8000
HEALTHCHECK --start-period=120s CMD ["python", "-c", "import urllib.request as r; r.urlopen('http://127.0.0.1:8000/health', timeout=3)"]
# Options that come later count: `docker run ragvl MODEL --port 9000`
ENTRYPOINT ["ragvl", "serve", "--host", "0.0.0.0"]
