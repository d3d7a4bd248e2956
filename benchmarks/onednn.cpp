// oneDNN's local response normalization (its version 2), for a comparison through ctypes.

#include <dnnl.hpp>

namespace {

struct Problem {
  dnnl::engine engine{dnnl::engine::kind::cpu, 0};
  dnnl::stream stream{engine};
  dnnl::memory x, y, gradient, result, workspace;
  dnnl::lrn_forward inference, training;
  dnnl::lrn_backward backward;
};

}  // namespace

// All tensors float32, of one layout; n, alpha (oneDNN divides it by n), beta, k of the formula.
extern "C" void* onednn_prepare(
    float* x, float* gradient, float* y, float* result, long images, long channels, long height,
    long width, bool channels_last, long n, float alpha, float beta, float k) {
  using tag = dnnl::memory::format_tag;
  auto* p = new Problem;
  const dnnl::memory::desc shape(
      {images, channels, height, width}, dnnl::memory::data_type::f32,
      channels_last ? tag::nhwc : tag::nchw);
  p->x = dnnl::memory(shape, p->engine, x);
  p->y = dnnl::memory(shape, p->engine, y);
  p->gradient = dnnl::memory(shape, p->engine, gradient);
  p->result = dnnl::memory(shape, p->engine, result);
  const auto across = dnnl::algorithm::lrn_across_channels;
  p->inference = dnnl::lrn_forward(
      dnnl::lrn_forward::primitive_desc(
          {dnnl::prop_kind::forward_inference, across, shape, n, alpha, beta, k}, p->engine));
  const dnnl::lrn_forward::primitive_desc training(
      {dnnl::prop_kind::forward_training, across, shape, n, alpha, beta, k}, p->engine);
  p->training = dnnl::lrn_forward(training);
  p->workspace = dnnl::memory(training.workspace_desc(), p->engine);
  p->backward = dnnl::lrn_backward(
      dnnl::lrn_backward::primitive_desc(
          {across, shape, shape, n, alpha, beta, k}, p->engine, training));
  return p;
}

extern "C" void onednn_forward(void* problem) {
  auto* p = static_cast<Problem*>(problem);
  p->inference.execute(p->stream, {{DNNL_ARG_SRC, p->x}, {DNNL_ARG_DST, p->y}});
  p->stream.wait();
}

extern "C" void onednn_forward_and_backward(void* problem) {
  auto* p = static_cast<Problem*>(problem);
  p->training.execute(
      p->stream, {{DNNL_ARG_SRC, p->x}, {DNNL_ARG_DST, p->y}, {DNNL_ARG_WORKSPACE, p->workspace}});
  p->backward.execute(
      p->stream, {{DNNL_ARG_SRC, p->x},
                  {DNNL_ARG_DIFF_DST, p->gradient},
                  {DNNL_ARG_WORKSPACE, p->workspace},
                  {DNNL_ARG_DIFF_SRC, p->result}});
  p->stream.wait();
}
