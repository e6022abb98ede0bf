// Swagger UI over our own description. "Try it out" goes with the browser's session, or with a key given in Authorize.
(() => {
  const host = document.getElementById("reference");
  const token = document.querySelector("meta[name=csrf-token]").content;
  const safe = ["GET", "HEAD", "OPTIONS"];

  SwaggerUIBundle({
    url: host.dataset.schema,
    domNode: host,
    layout: "BaseLayout",
    presets: [SwaggerUIBundle.presets.apis],
    validatorUrl: null, // else it would send our description to swagger.io
    deepLinking: true,
    docExpansion: "list",
    filter: true, // by tag; of so many operations only those in sight are drawn
    requestInterceptor(request) {
      const ours = new URL(request.url, location.href).origin === location.origin;
      if (ours && request.method && !safe.includes(request.method.toUpperCase())) request.headers["X-CSRFToken"] = token;
      return request;
    },
  });
})();
