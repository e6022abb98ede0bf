// ReDoc over our own description.
(() => {
  // It shows its maker's logo from its maker's server. No option turns that off, and this page asks no other server:
  // images of elsewhere are never asked for, whichever of the two ways their address is set.
  const image = HTMLImageElement.prototype;
  const source = Object.getOwnPropertyDescriptor(image, "src");
  const elsewhere = (address) => ![location.origin, "null"].includes(new URL(address, location.href).origin);
  Object.defineProperty(image, "src", {
    ...source,
    set(address) {
      if (!elsewhere(address)) source.set.call(this, address);
    },
  });
  image.setAttribute = function (name, value) {
    if (name !== "src" || !elsewhere(value)) Element.prototype.setAttribute.call(this, name, value);
  };

  const host = document.getElementById("reference");
  const fontFamily = "system-ui, sans-serif";
  const typography = { fontFamily, headings: { fontFamily }, code: { fontFamily: "ui-monospace, monospace" } };
  Redoc.init(host.dataset.schema, { theme: { typography } }, host);
})();
