// What a reader with weak sight would miss on the page as it is: text whose contrast is below WCAG 2.1 AA (1.4.3), measured
// from computed styles. Text of disabled controls is exempt there, and so is text that is not shown. Returns one line a fault.
() => {
    const pixel = new OffscreenCanvas(1, 1).getContext('2d', {willReadFrequently: true});
    const known = new Map();

    function rgba(colour) {  // any notation of CSS, as four numbers from 0 to 1
        if (!known.has(colour)) {
            pixel.clearRect(0, 0, 1, 1);
            pixel.fillStyle = colour;
            pixel.fillRect(0, 0, 1, 1);
            known.set(colour, [...pixel.getImageData(0, 0, 1, 1).data].map((part) => part / 255));
        }
        return known.get(colour);
    }

    function over(top, bottom) {
        const alpha = top[3];
        return [0, 1, 2].map((n) => alpha * top[n] + (1 - alpha) * bottom[n]).concat(1);
    }

    function behind(element) {  // null: a picture lies behind, whose colours are not known
        const layers = [];
        for (let at = element; at; at = at.parentElement) {
            const style = getComputedStyle(at);
            if (style.backgroundImage !== 'none') return null;
            layers.push(rgba(style.backgroundColor));
            if (layers.at(-1)[3] === 1) break;
        }
        return layers.reduceRight((below, layer) => over(layer, below), [1, 1, 1, 1]);
    }

    function luminance(colour) {
        const [r, g, b] = colour.map((part) => (part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4));
        return 0.2126 * r + 0.7152 * g + 0.0722 * b;
    }

    function shown(element, box) {
        if (!element.checkVisibility({opacityProperty: true, visibilityProperty: true}) || box.width < 2 || box.height < 2) return false;
        for (let at = element; at; at = at.parentElement) {  // kept for screen readers alone: clipped to nothing
            const style = getComputedStyle(at), own = at.getBoundingClientRect();
            if (style.position === 'absolute' && own.width <= 2 && own.height <= 2) return false;
        }
        return true;
    }

    const faults = new Set();

    function check(element, text, colour, size, weight) {
        const ground = behind(element);
        if (!ground || element.closest(':disabled, [aria-disabled="true"], [disabled]')) return;
        let seen = rgba(colour);
        for (let at = element; at; at = at.parentElement) seen = [...seen.slice(0, 3), seen[3] * Number(getComputedStyle(at).opacity)];
        const [light, dark] = [luminance(over(seen, ground)), luminance(ground)].sort((a, b) => b - a);
        const ratio = (light + 0.05) / (dark + 0.05), large = size >= 24 || (size >= 18.66 && weight >= 700);
        if (ratio >= (large ? 3 : 4.5)) return;
        const home = element.closest('[id]');
        faults.add(`${ratio.toFixed(2)} : 1 in #${home ? home.id : ''} ${element.tagName.toLowerCase()}.${element.className}: “${text.trim().slice(0, 50)}”`);
    }

    const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
    while (walker.nextNode()) {
        const element = walker.currentNode.parentElement, text = walker.currentNode.data;
        if (!text.trim() || element.closest('script, style, noscript, title')) continue;
        const range = document.createRange();
        range.selectNodeContents(walker.currentNode);
        if (!shown(element, range.getBoundingClientRect())) continue;
        const style = getComputedStyle(element);
        check(element, text, element.closest('svg') ? style.fill : style.color, parseFloat(style.fontSize), Number(style.fontWeight));
    }
    for (const field of document.querySelectorAll('input, textarea')) {
        const text = field.value || field.placeholder;
        if (!text || ['checkbox', 'radio', 'range', 'hidden', 'file'].includes(field.type)) continue;
        if (!shown(field, field.getBoundingClientRect())) continue;
        const style = getComputedStyle(field, field.value ? null : '::placeholder');
        check(field, text, style.color, parseFloat(style.fontSize), Number(style.fontWeight));
    }
    return [...faults];
}
