# docker build -t ral .
# docker run --gpus all --shm-size 16g -v "$PWD:/runs" ral \
#   accelerate launch --config_file /opt/ral/recipes/accelerate/ddp.yaml --no_python ral train /runs/recipe.yaml
# torch's wheels bring their CUDA libraries; the machine needs the driver and the NVIDIA container toolkit alone.
FROM python:3.12-slim-bookworm

ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PYTHONUNBUFFERED=1
WORKDIR /opt/ral

# torch first: its layer stays as it is when the package changes.
COPY constraints.txt ./
RUN pip install --constraint constraints.txt torch torchvision

COPY pyproject.toml README.md LICENSE ./
COPY src ./src
COPY recipes ./recipes
RUN pip install --constraint constraints.txt . \
    && useradd --create-home --uid 1000 ral

USER 1000
WORKDIR /runs
CMD ["ral", "--help"]
