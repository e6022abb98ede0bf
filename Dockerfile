# One image for every process; docker-compose.yml says which one a container runs.
FROM python:3.12-slim

ENV PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 DLP_HOME=/data
WORKDIR /app

# Versions that are to be compiled (torch-compile) are compiled by whichever process answers; without g++ they answer as they are.
RUN apt-get update && apt-get install -y --no-install-recommends g++ && rm -rf /var/lib/apt/lists/*

COPY requirements.txt .
RUN pip install --no-cache-dir -r requirements.txt

COPY manage.py ./
COPY dlplatform dlplatform
COPY datasets datasets
COPY registry registry
COPY training training
COPY templates templates
COPY static static

RUN useradd --system --uid 10001 --home-dir /nonexistent platform \
    && mkdir -p /data && chown platform /data
USER platform
VOLUME /data
EXPOSE 8000 8001
CMD ["python", "manage.py", "web"]
